"""The one way to files, local or on S3: whole reads, whole writes, listings.

Writers never show a half-written file under its final name: locally a temporary file is renamed,
on S3 one request (or one completed multipart upload) makes the object appear.
Credentials and endpoint come from the usual AWS environment and stay inside of s3fs.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

from botocore.exceptions import NoCredentialsError  # type: ignore[import-untyped]

from ops.storage.retry import PatientS3, Unavailable

#: Stores other than Amazon's reject newer checksum headers, so they are sent only where required.
_S3_CLIENT = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "retries": {"total_max_attempts": 1},  # `ops.storage.retry` repeats
    "connect_timeout": 10,
    "read_timeout": 30,
}

#: Files of fewer bytes are written by one request.
_SMALL = 2**25

#: What `staged` calls a file that is not whole yet.
_STAGED = re.compile(r"(^|/)\.[0-9a-f]{32}\.tmp$")


class Stored(NamedTuple):
    """One listed object: its path below the listed place, its size in bytes, its version."""

    name: str
    bytes: int
    version: str


def is_s3(location: str) -> bool:
    """Whether a location lies on S3."""
    return location.startswith("s3://")


@functools.cache
def _s3(_process: int) -> Any:  # keyed by process: its event loop survives no fork
    return PatientS3(
        use_listings_cache=False,
        default_fill_cache=False,
        skip_instance_cache=True,
        max_concurrency=1,  # else every whole read would ask for the size first
        config_kwargs=_S3_CLIENT,
    )


def s3() -> Any:
    """The S3 file system of this process."""
    return _s3(os.getpid())


@contextlib.contextmanager
def _naming(location: str) -> Iterator[None]:
    """Add the place to what the store says, such as "the specified bucket does not exist"."""
    try:
        yield
    except (FileNotFoundError, PermissionError, Unavailable) as error:
        answer = getattr(error.__cause__, "response", None) or {}
        said = answer.get("Error", {})
        what = said.get("Message") or said.get("Code") or error  # Ceph gives no message
        raise type(error)(f"{location}: {what}") from error


def join(location: str, *parts: str) -> str:
    """A location below another."""
    return "/".join([location.rstrip("/"), *parts])


def open_read(location: str) -> IO[bytes]:
    """Open a file for random access. Raises FileNotFoundError, PermissionError or OSError."""
    if is_s3(location):
        with _naming(location):
            return cast("IO[bytes]", s3().open(location, "rb", block_size=2**20, fill_cache=True))
    return open(location, "rb")


def read_bytes(location: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes [start, end) of a file, or all of it."""
    if is_s3(location):
        with _naming(location):
            return cast("bytes", s3().cat_file(location, start=start, end=end))
    with open(location, "rb") as file:
        file.seek(start or 0)
        return file.read() if end is None else file.read(end - (start or 0))


def exists(location: str) -> bool:
    """Whether a file lies there."""
    if is_s3(location):
        try:  # s3fs's own isfile takes every error for an absence
            with _naming(location):
                return bool(s3().info(location)["type"] == "file")
        except FileNotFoundError:
            return False
    return os.path.isfile(location)


def check_access(location: str) -> None:
    """Ask the store of a location on S3 whether it is there and lets this process look.

    Raises FileNotFoundError (no such bucket), PermissionError (wrong keys, or none of its own), or
    what else stands between.
    """
    bucket, key = _bucket_and_key(location)
    try:
        with _naming(location):
            s3().call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    except NoCredentialsError:
        raise PermissionError(f"{location}: no credentials were found") from None
    except PermissionError:
        if key:  # some may read a file, but not list
            with contextlib.suppress(OSError):
                s3().call_s3("head_object", Bucket=bucket, Key=key)
                return
        raise


def is_folder(location: str) -> bool:
    """Whether a location is a folder, or a prefix that holds objects."""
    if not is_s3(location):
        return os.path.isdir(location)
    return next(listing(location), None) is not None


def describe(location: str) -> Stored:
    """Name, size and version of one file."""
    if is_s3(location):
        with _naming(location):
            info = s3().info(location)
        return Stored(location.rsplit("/", 1)[-1], int(info["size"]), info["ETag"].strip('"'))
    status = os.stat(location)
    return Stored(os.path.basename(location), status.st_size, str(status.st_mtime_ns))


def listing(location: str) -> Iterator[Stored]:
    """Stream every file below a folder or prefix; never holds more than one page of them.

    Links to files count as files; links to folders are not followed.
    """
    return _s3_listing(location) if is_s3(location) else _local_listing(location)


def names(location: str) -> list[str]:
    """Whole files below a folder or prefix, sorted; none if there is no such folder.

    What a writer that died has left of a file, or is writing now, is none.
    """
    found = listing(location) if is_s3(location) or os.path.isdir(location) else ()
    return sorted(item.name for item in found if not _STAGED.search(item.name))


def _bucket_and_key(location: str) -> tuple[str, str]:
    bucket, _, key = location.removeprefix("s3://").partition("/")
    return bucket, key


def _s3_listing(location: str) -> Iterator[Stored]:
    prefix = _prefix(location)
    for page in _s3_pages(location):
        for item in page:
            name = item["Key"].removeprefix(prefix)
            if name and not name.endswith("/"):
                yield Stored(name, int(item["Size"]), item["ETag"].strip('"'))


def _prefix(location: str) -> str:
    _, key = _bucket_and_key(location)
    return key.rstrip("/") + "/" if key else ""


def _s3_pages(location: str) -> Iterator[list[dict[str, Any]]]:
    """Objects below a prefix, in the store's own words, up to 1000 at a time."""
    bucket, prefix = _bucket_and_key(location)[0], _prefix(location)
    page: dict[str, Any] = {"NextContinuationToken": None, "IsTruncated": True}
    while page["IsTruncated"]:
        token = page["NextContinuationToken"]
        more = {"ContinuationToken": token} if token else {}
        with _naming(location):
            page = s3().call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        yield page.get("Contents", [])


def _local_listing(location: str) -> Iterator[Stored]:
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(location, folder)) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                elif _is_file(entry):
                    with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                        status = entry.stat()
                        yield Stored(name, status.st_size, str(status.st_mtime_ns))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself is as good as gone
            return False
        raise


@contextlib.contextmanager
def staged(location: str) -> Iterator[str]:
    """A temporary local path; what is written there appears whole at `location` on success."""
    if is_s3(location):
        with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
            path = os.path.join(folder, "staged")
            yield path
            with _naming(location):
                try:
                    s3().put_file(path, location)
                except FileNotFoundError:
                    # The answer to the completion of an upload in parts was lost, and when it was
                    # asked for again, there was no such upload any more.
                    s3().put_file(path, location)
        return
    folder = os.path.dirname(os.path.abspath(location))
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")  # as `_STAGED` has it
    try:
        yield path
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(path, location)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def write_bytes(location: str, data: bytes) -> None:
    """Write a file whole."""
    if is_s3(location) and len(data) < _SMALL:
        with _naming(location):
            s3().pipe_file(location, data)
        return
    with staged(location) as path, open(path, "wb") as file:
        file.write(data)


def create(location: str, data: bytes) -> bool:
    """Write a file that is not there yet; False if it is. Of several processes one succeeds."""
    try:
        if is_s3(location):
            with _naming(location):
                s3().pipe_file(location, data, mode="create")
        else:
            beside = f"{location}.{uuid.uuid4().hex}.tmp"
            write_bytes(beside, data)
            try:
                os.link(beside, location)
            finally:
                os.remove(beside)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno == errno.EINVAL and exists(location):  # as Ceph puts it
            return False
        raise
    return True


def read_json(location: str) -> Any:
    """The content of a JSON file."""
    return json.loads(read_bytes(location))


def write_json(location: str, content: Any) -> None:
    """Write a JSON file whole, readable for people."""
    text = json.dumps(content, indent=1, sort_keys=False, allow_nan=False)
    write_bytes(location, text.encode())


def fetch_folder(location: str, folder: str) -> None:
    """Copy every file below a location into a local folder."""
    for item in listing(location):
        path = os.path.join(folder, item.name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open_read(join(location, item.name)) as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target, 2**24)


def remove_folder(location: str) -> None:
    """Remove a folder or prefix and all below it; nothing there is fine."""
    if not is_s3(location):
        shutil.rmtree(location, ignore_errors=True)
        return
    bucket, _ = _bucket_and_key(location)
    for page in _s3_pages(location):
        if page:
            gone = {"Objects": [{"Key": item["Key"]} for item in page], "Quiet": True}
            answer = s3().call_s3("delete_objects", Bucket=bucket, Delete=gone)
            for error in answer.get("Errors", ()):  # s3fs would leave them out
                what = f"{error['Code']}, {error.get('Message')}"
                raise OSError(f"s3://{bucket}/{error['Key']} cannot be removed: {what}")


def remove_file(location: str) -> None:
    """Remove a file; nothing there is fine."""
    with contextlib.suppress(FileNotFoundError):
        if is_s3(location):
            s3().rm_file(location)
        else:
            os.remove(location)
