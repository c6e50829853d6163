"""The one fetch: the bytes of an image or mask, wherever it lies, or a `Failure` that says why."""

from __future__ import annotations

import errno
import functools
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import tenacity
from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

from ops.images import archives
from ops.images.failure import Failure
from ops.storage import files, uris
from ops.storage.retry import BELOW_S3FS, RetryPolicy, Unavailable, patient


@dataclass(frozen=True)
class FetchSettings:
    """Limits and patience of reading."""

    max_bytes: int = 2**29
    """Files larger than this many bytes are not read (status too_large)."""
    attempts: int = 5
    """How often a read that fails for a passing reason is tried."""
    backoff: float = 0.5
    """Seconds before the second attempt; doubles with each, with jitter, up to 20."""


class _Container(Protocol):
    def read(self, member: str, position: int | None, limit: int) -> bytes: ...


def fetch(
    uri: str,
    position: int | None,
    size: int | None,
    settings: FetchSettings = FetchSettings(),
    again: Callable[[], None] = lambda: None,
) -> bytes:
    """All bytes of one file or member.

    `position` and `size` are what the inventory knows of it; a member is found by name without.
    `again` is called before each attempt but the first, of whatever the read needs.
    Raises Failure (missing, forbidden, unavailable, unreadable, too_large).
    """
    if size is not None and size > settings.max_bytes:
        _too_large(size, settings.max_bytes)
    patience = RetryPolicy(settings.attempts, settings.backoff, again)
    try:
        with patient(patience):
            # Requests to S3 are repeated further below; here are disks, and reads that came short.
            data = tenacity.Retrying(**patience.asked())(
                _read, uri, position, size, settings.max_bytes
            )
    except FileNotFoundError:
        raise Failure("missing", "it was listed, but is gone") from None
    except PermissionError:
        raise Failure("forbidden", "the store denies access to it") from None
    except Unavailable as error:
        raise Failure("unavailable", str(error)) from None
    except (OSError, BotoCoreError, *BELOW_S3FS) as error:
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise Failure("unavailable", f"the store failed for good ({what})") from None
    if len(data) > settings.max_bytes:
        _too_large(len(data), settings.max_bytes)
    return data


def _too_large(size: int, limit: int) -> None:
    message = f"{size} bytes are more than the limit of {limit}; --fetch.max_bytes raises it"
    raise Failure("too_large", message)


def _read(uri: str, position: int | None, size: int | None, limit: int) -> bytes:
    location, member = uris.parse(uri)
    if member is None:
        data = files.read_bytes(location)
        if size is not None and len(data) < size and files.describe(location).bytes == size:
            raise OSError(f"{len(data)} of {size} bytes came")
        return data
    if position is not None and size is not None and _is_plain_tar(location):
        try:
            data = files.read_bytes(location, position, position + size)
        except OSError as error:
            if error.errno != errno.EINVAL:  # what S3 says of a range beyond the end
                raise
            data = b""
        if len(data) < size:
            raise Failure("unreadable", f"the archive ends after {len(data)} of its {size} bytes")
        return data
    try:
        with _OPENING:  # a miss of the cache must not unpack an archive once per thread
            container = _container(location)
        return container.read(member, position, limit)
    except KeyError:
        raise Failure("missing", "the archive no longer holds it") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
        raise Failure("unsupported", f"its archive cannot be unpacked ({error})") from None
    except Exception as error:
        archives.raise_unless_damage(error)
        raise Failure("unreadable", f"damaged in its archive ({error})") from None


def _is_plain_tar(location: str) -> bool:
    return location.lower().endswith(".tar")


_OPENING = threading.Lock()


@functools.lru_cache(maxsize=4)  # an open archive keeps its directory and a few blocks in memory
def _container(location: str) -> _Container:
    lower = location.lower()
    if lower.endswith(archives.ZIP):
        return _Zip(files.open_read(location))
    if lower.endswith(archives.PARQUET):
        return _Parquet(files.open_read(location))
    return _Tar(location)


class _Zip:
    def __init__(self, file: IO[bytes]) -> None:
        self._archive = zipfile.ZipFile(file)

    def read(self, member: str, position: int | None, limit: int) -> bytes:
        members = self._archive.infolist()
        if position is not None and position >= len(members):
            raise KeyError(position)
        info = self._archive.getinfo(member) if position is None else members[position]
        if info.filename != member:
            raise KeyError(member)
        with self._archive.open(info) as file:
            return file.read(limit + 1)  # what a header promises is not what a bomb holds


class _Tar:
    """A tar whose members are found by name, or that is compressed and must be unpacked first."""

    def __init__(self, location: str) -> None:
        file = files.open_read(location)
        if archives.is_compressed_tar(location):
            plain: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives with the cache entry
            with tarfile.open(fileobj=file, mode="r:*") as packed:
                assert packed.fileobj is not None
                packed.fileobj.seek(0)
                try:
                    while chunk := packed.fileobj.read1(4096):  # type: ignore[attr-defined]
                        plain.write(chunk)
                except Exception as error:
                    if not archives.is_damage(error):
                        raise
                    # cut short or damaged: the members before that can still be read
            file.close()
            file = plain
        self._file = file
        self._lock = threading.Lock()
        self._members: dict[str | int, tuple[int, int]] = {}  # by name and by offset

    def read(self, member: str, position: int | None, limit: int) -> bytes:
        with self._lock:
            if not self._members:
                self._members = self._scan()
            start, size = self._members[member if position is None else position]
            if size > limit:
                _too_large(size, limit)
            self._file.seek(start)
            data = self._file.read(size)
        if len(data) < size:
            raise EOFError(f"the archive ends after {len(data)} of its {size} bytes")
        return data

    def _scan(self) -> dict[str | int, tuple[int, int]]:
        members: dict[str | int, tuple[int, int]] = {}
        self._file.seek(0)
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            try:
                while (member := tar.next()) is not None:
                    if member.isreg():
                        where = (member.offset_data, member.size)
                        members[member.name] = members[member.offset_data] = where
            except tarfile.ReadError:
                pass  # the inventory has a row for the damage
        return members


class _Parquet:
    def __init__(self, file: IO[bytes]) -> None:
        self._table = pq.ParquetFile(file)
        self._column = archives.bytes_column(self._table.schema_arrow)
        self._lock = threading.Lock()
        metadata = self._table.metadata
        self._counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._group: tuple[int, pa.ChunkedArray] | None = None

    def read(self, member: str, position: int | None, limit: int) -> bytes:
        row = int(member.partition("/")[0]) if position is None else position
        with self._lock:
            for group, count in enumerate(self._counts):
                if row < count:
                    value = self._rows(group)[row].as_py()
                    if value is None:
                        raise Failure("unreadable", "its row holds no bytes")
                    return bytes(value[: limit + 1])
                row -= count
        raise KeyError(member)

    def _rows(self, group: int) -> pa.ChunkedArray:
        if self._group is None or self._group[0] != group:
            found = self._table.read_row_group(group, columns=[self._column])
            self._group = (group, found.flatten()[0] if "." in self._column else found[0])
        return self._group[1]
