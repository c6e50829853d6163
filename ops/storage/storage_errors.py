"""Errors of files and stores that the user of a command can mend, and the only place they are made.

Each is a `UserError`, so a command reports it in one sentence, and also the `OSError` that Python
raises for the same cause, so `except FileNotFoundError` catches `NotFound`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator

from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    NoCredentialsError,
)

from ops.errors import UserError

#: What a disk or a file server reports whatever the code does: full, failing, read-only.
DEVICE_ERRORS = frozenset({errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE})


class StorageError(UserError, OSError):
    """A file or a store cannot be used. `location` is empty where the message names the place."""

    def __init__(self, message: str, location: str = "", number: int | None = None) -> None:
        super().__init__(f"{location}: {message}" if location else message)
        self.message = message
        self.location = location
        self.errno = number

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str, int | None]]:
        return type(self), (self.message, self.location, self.errno)


class NotFound(StorageError, FileNotFoundError):
    """There is no such file, folder, object or bucket."""


class AccessDenied(StorageError, PermissionError):
    """The file system or the store refuses access."""


class AlreadyExists(StorageError, FileExistsError):
    """A file that was to be created exists."""


class IsFolder(StorageError, IsADirectoryError):
    """A folder is where a file is needed."""


class NotFolder(StorageError, NotADirectoryError):
    """A file is where a folder is needed."""


class Changed(StorageError):
    """A file is not the version that was asked for, or changed while it was read."""


class Unavailable(StorageError):
    """A store kept failing after the last retry, or cannot be reached."""


@contextlib.contextmanager
def storage_errors(location: str, errnos: Collection[int] | None = None) -> Iterator[None]:
    """Turn errors of the operating system and of S3 into a `StorageError` that names `location`.

    The original error is the cause. With `errnos`, only errors of the operating system with these
    numbers are converted; others pass as they are.
    """
    try:
        yield
    except StorageError as error:
        if error.location or errnos is not None:
            raise
        raise type(error)(error.message, location, error.errno) from error
    except OSError as error:
        if errnos is not None and error.errno not in errnos:
            raise
        raise _kind(error)(_message(error), location, error.errno) from error
    except BotoCoreError as error:
        if errnos is not None:
            raise
        if isinstance(error, NoCredentialsError):
            raise AccessDenied("no credentials were found", location) from error
        raise StorageError(str(error), location) from error


def _kind(error: OSError) -> type[StorageError]:
    for kind in (NotFound, AccessDenied, AlreadyExists, IsFolder, NotFolder):
        if isinstance(error, kind.__bases__[1]):
            return kind
    return StorageError


def _message(error: OSError) -> str:
    """The store's explanation, such as "The specified bucket does not exist"."""
    if response := getattr(error.__cause__, "response", None):
        answer = response.get("Error", {})
        return str(answer.get("Message") or answer.get("Code") or error)  # Ceph gives no message
    if isinstance(error, FileNotFoundError):  # s3fs gives only the path
        return os.strerror(errno.ENOENT)
    return error.strerror or str(error)
