"""The one way to the bytes of an image or mask; raises a `Failure` that gives the reason."""

from __future__ import annotations

import errno
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Protocol

from ops.archives import expansion
from ops.archives.damage import raise_unless_damage
from ops.archives.entry import PARQUET, ZIP, file_version
from ops.archives.parquet_rows import ParquetReader
from ops.archives.tar_members import TarReader
from ops.archives.zip_members import ZipReader
from ops.failure import Failure
from ops.storage import files, s3, uris, versions
from ops.storage.retry import RetryPolicy, retry_policy
from ops.storage.storage_errors import (
    AccessDenied,
    Archived,
    Changed,
    NotRegular,
    StorageError,
    TooLarge,
    Unavailable,
)

#: Note in the reason of a row whose file may be another than the listed one.
OTHER_CHANGE_TIME = (
    "it has the size and modification time that were listed, but another change time: after the "
    "listing it was rewritten, moved or copied, or its mode changed"
)


@dataclass(frozen=True)
class FetchSettings:
    """How images are read: size limit and retries."""

    max_bytes: int = 2**29
    """Files of more bytes are not read (status `too_large`)."""
    max_unpack_ratio: float = expansion.RATIO
    """Compressed tar and Parquet files are unpacked to at most this many times their size (and 64
    MiB in any case)."""
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
    looked up by the name in its URI, and by the number there if it has one. With `version`, bytes
    of another version of the file or its archive are not returned. `on_retry` is called before each
    retry of any request that the read needs. Raises Failure (missing, changed, forbidden,
    unavailable, unreadable, too_large).
    """
    if size is not None and size > settings.max_bytes:
        raise _too_large(size, settings.max_bytes)
    policy = RetryPolicy(settings.attempts, settings.backoff, on_retry)
    try:
        with retry_policy(policy):
            # Requests to S3 are repeated by their client; this repeats reads from disks, and reads
            # that returned too few bytes.
            data = policy.call(_read, uri, member, size, settings, file_version(version))
    except Changed as error:
        raise Failure("changed", f"it is not the file that was listed: {error.message}") from None
    except NotRegular as error:
        raise Failure("changed", f"{error.message}, so it was not opened") from None
    except TooLarge as error:
        raise _too_large(error.size, settings.max_bytes) from None
    except FileNotFoundError:
        raise Failure("missing", "it was listed, but no longer exists") from None
    except Archived as error:
        raise Failure("forbidden", error.message) from None
    except AccessDenied as error:
        raise Failure("forbidden", _denied(error)) from None
    except Unavailable as error:
        raise Failure("unavailable", str(error)) from None
    except OSError as error:
        details = f"{type(error).__name__}: {str(error)[:200]}"
        raise Failure("unavailable", f"it cannot be read ({details})") from None
    if len(data) > settings.max_bytes:
        raise _too_large(len(data), settings.max_bytes)
    return data


def _denied(error: AccessDenied) -> str:
    """The address, what the store or file system told, and who may mend it."""
    right = "s3:GetObject" if s3.is_s3(error.location) else "read permission"
    remedy = "" if ";" in error.message else f"; the user of this process needs {right} on it"
    return f"the store denies access to {error.location}: {error.message}{remedy}"


def change_time_note(uri: str, version: str | None) -> str:
    """A sentence if the file or archive that was read may be another than the listed one.

    It says so if only the change time of a local file is another; empty otherwise.
    """
    location = uris.parse(uri).location
    return OTHER_CHANGE_TIME if _has_other_change_time(location, file_version(version)) else ""


def _has_other_change_time(location: str, version: str | None) -> bool:
    """Whether a local file has another change time than the listed one, and all else the same."""
    if version is None or s3.is_s3(location):
        return False
    try:
        return versions.differ_in_change_time(version, files.describe(location).version)
    except StorageError:
        return False  # it was removed


def _too_large(size: int, limit: int) -> Failure:
    message = f"{size} bytes are more than the limit of {limit}; --fetch.max_bytes raises it"
    return Failure("too_large", message)


def _read(
    uri: str, member: int | None, size: int | None, settings: FetchSettings, version: str | None
) -> bytes:
    """`version` is that of the file or of the whole archive."""
    limit = settings.max_bytes
    location, name = uris.parse(uri)
    if "\0" in location:
        raise Failure("missing", "its address holds a NUL character, which no name of a file has")
    member = uris.member_number(uri) if member is None else member
    if name is None:
        data = files.read_bytes(location, version=version, limit=limit)
        if size is not None and len(data) < size and files.describe(location).bytes == size:
            raise StorageError(f"{len(data)} of {size} bytes arrived", location)
        return data
    is_by_offset = _is_plain_tar(location) and not _has_other_change_time(location, version)
    if is_by_offset and member is not None and member >= 0 and size is not None:
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
            container = _container(location, uris.column(uri), version, settings.max_unpack_ratio)
        try:
            return container.read(name, member, limit)
        finally:  # what its directory points to may have been overwritten
            files.check_version(container.file, location, version)
    except KeyError:
        raise Failure("missing", "the archive no longer contains it") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
        raise Failure("unsupported", f"its archive cannot be unpacked ({error})") from None
    except Exception as error:
        raise_unless_damage(error)
        raise Failure("unreadable", f"damaged in its archive ({error})") from None


def _is_plain_tar(location: str) -> bool:
    return location.lower().endswith(".tar")


_OPEN_LOCK = threading.Lock()


@functools.lru_cache(maxsize=4)  # an open archive keeps its directory and a few blocks in memory
def _container(location: str, column: str | None, version: str, ratio: float) -> _Container:
    lower = location.lower()
    file = files.open_read(location, version)
    if lower.endswith(ZIP):
        return ZipReader(file)
    if lower.endswith(PARQUET):
        return ParquetReader(file, column, ratio)
    return TarReader(file, ratio)
