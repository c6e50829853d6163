"""The one way to files, local or on S3: whole reads, whole writes, listings.

Writers never show a half-written file under its final name: locally a temporary file is renamed,
on S3 one request (or one completed multipart upload) makes the object appear.
Every function raises a `StorageError` where the file system or the store fails: NotFound,
AccessDenied and others of `ops.storage.storage_errors`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from ops.errors import UserError
from ops.storage import local_files, s3, versions
from ops.storage.s3 import is_s3
from ops.storage.storage_errors import (
    DEVICE_ERRORS,
    AlreadyExists,
    NotFound,
    StorageError,
    storage_errors,
)
from ops.storage.versions import Stored

#: Files of fewer bytes are written by one request.
_SINGLE_REQUEST_BYTES = 2**25

#: A larger JSON file is none of this project.
_JSON_BYTES = 2**30
#: The names that `staged` gives to files that are still being written.
_STAGED = re.compile(r"(^|/)\.[0-9a-f]{32}\.tmp$")
#: Errors of a local file that is being written which no code can avoid.
_WRITE_ERRORS = DEVICE_ERRORS | {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}


def join(location: str, *parts: str) -> str:
    """A location below another."""
    return "/".join([location.rstrip("/"), *parts])


def open_read(location: str, version: str | None = None) -> IO[bytes]:
    """Open a file for random access. Raises Changed if it is another version."""
    if is_s3(location):
        return s3.open_read(location, version)
    return local_files.open_read(location, version)


def check_version(file: IO[bytes], location: str, version: str | None) -> None:
    """Raise Changed if an open file is another version: it was written to since it was opened.

    Reads from S3 check this themselves.
    """
    if not is_s3(location):
        local_files.check_version(file, location, version)


def read_bytes(
    location: str,
    start: int | None = None,
    end: int | None = None,
    version: str | None = None,
    limit: int | None = None,
) -> bytes:
    """Bytes [start, end) of a file, or all of it.

    Raises Changed if it is another version than the given one, or is written to meanwhile; TooLarge
    if all of it, or from `start`, is more than `limit` bytes, of which no more than one is read.
    """
    read = s3.read_bytes if is_s3(location) else local_files.read_bytes
    return read(location, start, end, version, limit)


def exists(location: str) -> bool:
    """Whether a location is a file."""
    if not is_s3(location):
        return os.path.isfile(location)
    try:  # s3fs's own isfile takes every error for an absence
        with storage_errors(location):
            return bool(s3.file_system().info(location)["type"] == "file")
    except NotFound:
        return False


def is_folder(location: str) -> bool:
    """Whether a location is a folder, or a prefix that holds objects."""
    if not is_s3(location):
        return os.path.isdir(location)
    return next(listing(location), None) is not None


def describe(location: str) -> Stored:
    """Name, size and version of one file."""
    with storage_errors(location):
        if is_s3(location):
            info = s3.file_system().info(location)
            return Stored(location.rsplit("/", 1)[-1], int(info["size"]), s3.etag(info))
        status = os.stat(location)
    return Stored(os.path.basename(location), status.st_size, versions.of_file(status))


def listing(
    location: str,
    left_out: Counter[str] | None = None,
    closed: list[StorageError] | None = None,
) -> Iterator[Stored]:
    """Stream every file below a folder or prefix; never holds more than one page of them.

    Links to files count as files; links to folders are not followed. What is no file is counted in
    `left_out` by its kind. A folder within that cannot be listed, or not wholly, adds its error to
    `closed`, if it is given, and raises it otherwise. If the place itself is gone, that is raised.
    """
    left_out = Counter() if left_out is None else left_out
    if is_s3(location):
        return _s3_listing(location, left_out)
    return local_files.listing(location, left_out, closed)


def names(location: str) -> list[str]:
    """Names of the files below a folder or prefix, sorted; empty if there is no such folder.

    Leaves out temporary files of writers that are at work or have died.
    """
    items = listing(location) if is_s3(location) or os.path.isdir(location) else ()
    return sorted(item.name for item in items if not _STAGED.search(item.name))


def _s3_listing(location: str, left_out: Counter[str]) -> Iterator[Stored]:
    prefix = s3.prefix(location)
    for page in s3.pages(location):
        for item in page:
            name = item["Key"].removeprefix(prefix)
            if name and not name.endswith("/"):
                yield Stored(name, int(item["Size"]), s3.etag(item))
            elif item["Size"]:  # without content it marks a folder
                left_out["objects whose keys end in /"] += 1


@contextlib.contextmanager
def staged(location: str) -> Iterator[str]:
    """A temporary local path; what is written there appears whole at `location` on success.

    A full disk or a forbidden folder becomes a StorageError; other errors of the writer pass.
    """
    if is_s3(location):
        with _temporary_folder() as folder:
            path = os.path.join(folder, "staged")
            with storage_errors(folder, _WRITE_ERRORS):
                yield path
            with storage_errors(location):
                try:
                    s3.file_system().put_file(path, location)
                except FileNotFoundError:
                    # The answer to the completion of a multipart upload was lost, and when the
                    # request was repeated, the upload no longer existed.
                    s3.file_system().put_file(path, location)
        return
    folder = os.path.dirname(os.path.abspath(location))
    with storage_errors(location):
        os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")  # matches `_STAGED`
    try:
        with storage_errors(location, _WRITE_ERRORS):
            yield path
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        with storage_errors(location):
            os.replace(path, location)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    with storage_errors(tempfile.gettempdir(), _WRITE_ERRORS):
        folder = tempfile.TemporaryDirectory(prefix="nightloupe-")
    with folder as path:
        yield path


def write_bytes(location: str, data: bytes) -> None:
    """Write a file whole."""
    if is_s3(location) and len(data) < _SINGLE_REQUEST_BYTES:
        with storage_errors(location):
            s3.file_system().pipe_file(location, data)
        return
    with staged(location) as path, open(path, "wb") as file:
        file.write(data)


def create(location: str, data: bytes) -> bool:
    """Write a file that does not exist yet; False if it does. Of several processes one succeeds."""
    try:
        with storage_errors(location):
            if is_s3(location):
                s3.file_system().pipe_file(location, data, mode="create")
            else:
                beside = f"{location}.{uuid.uuid4().hex}.tmp"
                write_bytes(beside, data)
                try:
                    os.link(beside, location)
                finally:
                    os.remove(beside)
    except AlreadyExists:
        return False
    except OSError as error:
        if error.errno == errno.EINVAL and exists(location):  # Ceph's answer
            return False
        raise
    return True


def read_json(location: str) -> Any:
    """The content of a JSON file. Raises UserError if it holds anything else."""
    try:
        return json.loads(read_bytes(location, limit=_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{location} is not valid JSON: {error}; restore it from a backup, or move it away"
        ) from None


def write_json(location: str, content: Any) -> None:
    """Write a JSON file whole, readable for people."""
    text = json.dumps(content, indent=1, sort_keys=False, allow_nan=False)
    write_bytes(location, text.encode())


def remove_folder(location: str) -> None:
    """Remove a folder or prefix and all below it, if it exists."""
    if is_s3(location):
        s3.remove_prefix(location)
    else:
        shutil.rmtree(location, ignore_errors=True)


def remove_file(location: str) -> None:
    """Remove a file, if it exists."""
    with contextlib.suppress(NotFound), storage_errors(location):
        if is_s3(location):
            s3.file_system().rm_file(location)
        else:
            os.remove(location)
