"""The one way to the bytes of an image or mask; raises a `Failure` that gives the reason."""

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

from ops.images import archives
from ops.images.failure import Failure
from ops.storage import files, uris
from ops.storage.retry import RetryPolicy, retry_policy
from ops.storage.storage_errors import Changed, StorageError, Unavailable


@dataclass(frozen=True)
class FetchSettings:
    """How images are read: size limit and retries."""

    max_bytes: int = 2**29
    """Files of more bytes are not read (status `too_large`)."""
    attempts: int = 5
    """Attempts at a read that fails for a transient reason."""
    backoff: float = 0.5
    """Seconds before the second attempt; doubles with each, with jitter, up to 20."""


class _Container(Protocol):
    file: IO[bytes]

    def read(self, name: str, member: int | None, limit: int) -> bytes: ...


def fetch(
    uri: str,
    member: int | None,
    size: int | None,
    settings: FetchSettings = FetchSettings(),
    on_retry: Callable[[], None] = lambda: None,
    version: str | None = None,
) -> bytes:
    """All bytes of one file or member of an archive.

    `member`, `size` and `version` are columns of the inventory. Without `member`, a member is
    looked up by the name in its URI. With `version`, bytes of another version of the file or its
    archive are not returned. `on_retry` is called before each retry of any request that the read
    needs. Raises Failure (missing, changed, forbidden, unavailable, unreadable, too_large).
    """
    if size is not None and size > settings.max_bytes:
        _too_large(size, settings.max_bytes)
    policy = RetryPolicy(settings.attempts, settings.backoff, on_retry)
    try:
        with retry_policy(policy):
            # Requests to S3 are repeated by their client; this repeats reads from disks, and reads
            # that returned too few bytes.
            data = tenacity.Retrying(**policy.tenacity_settings())(
                _read, uri, member, size, settings.max_bytes, archives.file_version(version)
            )
    except Changed as error:
        raise Failure("changed", f"it is not the file that was listed: {error.message}") from None
    except FileNotFoundError:
        raise Failure("missing", "it was listed, but no longer exists") from None
    except PermissionError:
        raise Failure("forbidden", "the store denies access to it") from None
    except Unavailable as error:
        raise Failure("unavailable", str(error)) from None
    except OSError as error:
        details = f"{type(error).__name__}: {str(error)[:200]}"
        raise Failure("unavailable", f"it cannot be read ({details})") from None
    if len(data) > settings.max_bytes:
        _too_large(len(data), settings.max_bytes)
    return data


def _too_large(size: int, limit: int) -> None:
    message = f"{size} bytes are more than the limit of {limit}; --fetch.max_bytes raises it"
    raise Failure("too_large", message)


def _read(uri: str, member: int | None, size: int | None, limit: int, version: str | None) -> bytes:
    """`version` is that of the file or of the whole archive."""
    location, name = uris.parse(uri)
    if name is None:
        data = files.read_bytes(location, version=version)
        if size is not None and len(data) < size and files.describe(location).bytes == size:
            raise StorageError(f"{len(data)} of {size} bytes arrived", location)
        return data
    if member is not None and size is not None and _is_plain_tar(location):
        try:
            data = files.read_bytes(location, member, member + size, version)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the answer of S3 to a range beyond the end
                raise
            data = b""
        if len(data) < size:
            raise Failure("unreadable", f"the archive ends after {len(data)} of its {size} bytes")
        return data
    try:
        # An archive that was rewritten since it was opened is opened again.
        version = version or files.describe(location).version
        with _OPEN_LOCK:  # otherwise every thread that misses the cache unpacks the archive
            container = _container(location, version)
        try:
            return container.read(name, member, limit)
        finally:  # what its directory points to may have been overwritten
            files.check_version(container.file, location, version)
    except KeyError:
        raise Failure("missing", "the archive no longer contains it") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
        raise Failure("unsupported", f"its archive cannot be unpacked ({error})") from None
    except Exception as error:
        archives.raise_unless_damage(error)
        raise Failure("unreadable", f"damaged in its archive ({error})") from None


def _is_plain_tar(location: str) -> bool:
    return location.lower().endswith(".tar")


_OPEN_LOCK = threading.Lock()


@functools.lru_cache(maxsize=4)  # an open archive keeps its directory and a few blocks in memory
def _container(location: str, version: str) -> _Container:
    lower = location.lower()
    file = files.open_read(location, version)
    if lower.endswith(archives.ZIP):
        return _Zip(file)
    if lower.endswith(archives.PARQUET):
        return _Parquet(file)
    return _Tar(file, archives.is_compressed_tar(location))


class _Zip:
    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._archive = zipfile.ZipFile(file)

    def read(self, name: str, member: int | None, limit: int) -> bytes:
        members = self._archive.infolist()
        if member is not None and member >= len(members):
            raise KeyError(member)
        info = self._archive.getinfo(name) if member is None else members[member]
        if info.filename != name:
            raise KeyError(name)
        with self._archive.open(info) as file:
            return file.read(limit + 1)  # the size in the header of a zip bomb is wrong


class _Tar:
    """A tar whose members are looked up by name, or that is compressed and is unpacked first."""

    def __init__(self, file: IO[bytes], compressed: bool) -> None:
        self.file = file
        if compressed:
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
                    # truncated or damaged: the members before that can still be read
            file = plain
        self._file = file
        self._lock = threading.Lock()
        self._members: dict[str | int, tuple[int, int]] = {}  # by name and by offset

    def read(self, name: str, member: int | None, limit: int) -> bytes:
        with self._lock:
            if not self._members:
                self._members = self._scan()
            start, size = self._members[name if member is None else member]
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
                while (header := tar.next()) is not None:
                    if header.isreg():
                        extent = (header.offset_data, header.size)
                        members[header.name] = members[header.offset_data] = extent
            except tarfile.ReadError:
                pass  # the listing already reported the damage
        return members


class _Parquet:
    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._table = pq.ParquetFile(file)
        self._column = archives.bytes_column(self._table.schema_arrow)
        self._lock = threading.Lock()
        metadata = self._table.metadata
        self._counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._group: tuple[int, pa.ChunkedArray] | None = None

    def read(self, name: str, member: int | None, limit: int) -> bytes:
        row = int(name.partition("/")[0]) if member is None else member
        with self._lock:
            for group, count in enumerate(self._counts):
                if row < count:
                    value = self._rows(group)[row].as_py()
                    if value is None:
                        raise Failure("unreadable", "its row holds no bytes")
                    return bytes(value[: limit + 1])
                row -= count
        raise KeyError(name)

    def _rows(self, group: int) -> pa.ChunkedArray:
        if self._group is None or self._group[0] != group:
            table = self._table.read_row_group(group, columns=[self._column])
            self._group = (group, table.flatten()[0] if "." in self._column else table[0])
        return self._group[1]
