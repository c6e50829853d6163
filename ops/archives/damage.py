"""Tells damaged data from data that could not be read."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zipfile
import zlib

import pyarrow as pa

from ops.errors import UserError
from ops.storage.storage_errors import StorageError


def is_damage(error: Exception) -> bool:
    """Whether an error means that data are damaged, not that they could not be read."""
    if isinstance(error, OSError):  # bz2 and Parquet raise it without a number, file systems with
        return isinstance(error, gzip.BadGzipFile) or (type(error) is OSError and not error.errno)
    damage = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
    return isinstance(error, (*damage, pa.ArrowException, ValueError, UserError))


def raise_unless_damage(error: Exception) -> None:
    """Raise an error of an archive reader again, unless it means that data are damaged."""
    context = error.__context__
    is_storage_error = isinstance(error, StorageError)
    if not is_storage_error and isinstance(context, OSError) and not is_damage(context):
        raise context  # zipfile and tarfile report a failing file as a damaged one
    if not is_damage(error):
        raise error
