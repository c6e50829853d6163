"""Local files: their listing, and reads that only regular files answer."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from typing import IO

from ops.storage import versions
from ops.storage.storage_errors import (
    Changed,
    IsFolder,
    NotFolder,
    NotFound,
    NotRegular,
    StorageError,
    TooLarge,
    storage_errors,
)
from ops.storage.versions import Stored

_SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


#: Why an entry of a folder gives no file.
VANISHED = "files and folders that vanished while they were listed"
UNKNOWN = "files whose size and time cannot be read"


def open_read(location: str, version: str | None = None) -> IO[bytes]:
    """Open a regular file. Raises Changed if it is another version, NotRegular if it is none.

    Opening a pipe waits for its writer, and opening a device may do anything, so neither is opened;
    O_NONBLOCK covers one that takes the place of a file in between.
    """
    with storage_errors(location):
        _check_regular(location, os.stat(location))
        file = open(  # noqa: SIM115 - the caller closes it
            location, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)
        )
    try:
        _check_regular(location, os.fstat(file.fileno()))
        check_version(file, location, version)
    except BaseException:
        file.close()
        raise
    return file


def _check_regular(location: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsFolder(os.strerror(errno.EISDIR), location, errno.EISDIR)
    if not stat.S_ISREG(status.st_mode):
        kind = _SPECIAL.get(stat.S_IFMT(status.st_mode), "of an unknown kind")
        raise NotRegular(f"it is {kind}, not a file", location)


def check_version(file: IO[bytes], location: str, version: str | None) -> None:
    """Raise Changed if an open file is another version: it was written to since it was opened."""
    if version is not None:
        with storage_errors(location):
            now = versions.of_file(os.fstat(file.fileno()))
        versions.check(location, version, now)


def read_bytes(
    location: str, start: int | None, end: int | None, version: str | None, limit: int | None
) -> bytes:
    """Bytes [start, end) of a file, or all of it (see `ops.storage.files.read_bytes`)."""
    with open_read(location, version) as file, storage_errors(location):
        status = os.fstat(file.fileno())
        size = max(0, status.st_size - (start or 0))
        file.seek(start or 0)
        if end is not None:
            data = file.read(end - (start or 0))
        elif limit is None:
            data = file.read()
        elif size > limit:
            raise TooLarge(size, limit)
        else:
            data = _read_at_most(file, limit + 1, size)
            if len(data) > limit:
                raise TooLarge(len(data), limit)
        check_version(file, location, version)
        opened = versions.of_file(status)
        if version is not None and versions.of_file(os.fstat(file.fileno())) != opened:
            raise Changed("it was written to while it was read", location)
        return data


def _read_at_most(file: IO[bytes], most: int, expected: int) -> bytes:
    """Up to `most` bytes, without memory for more than are there."""
    data = file.read(min(most, expected + 1))
    if len(data) <= expected or len(data) == most:
        return data
    return data + file.read(most - len(data))  # it grows, or is a file whose size is not known


def listing(
    location: str, left_out: Counter[str], closed: list[StorageError] | None
) -> Iterator[Stored]:
    """Stream every file below a folder (see `ops.storage.files.listing`)."""
    folders = [""]
    while folders:
        folder = folders.pop()
        path = os.path.join(location, folder)
        try:
            with storage_errors(path):
                yield from _folder(path, folder, folders, left_out)
        except StorageError as error:
            if closed is None or not folder:
                raise
            if isinstance(error, (NotFound, NotFolder)):
                left_out[VANISHED] += 1
                continue
            with storage_errors(location):
                os.stat(location)  # raises if all is gone, such as a mount
            closed.append(error)


def _folder(path: str, folder: str, folders: list[str], left_out: Counter[str]) -> Iterator[Stored]:
    """The files of one folder; its folders join `folders`. Raises its first error at the end."""
    failed: OSError | None = None
    with os.scandir(path) as entries:
        for entry in entries:
            name = f"{folder}{entry.name}"
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                    continue
                if not _is_file(entry):
                    left_out[_kind(entry)] += 1
                    continue
                status = entry.stat()
            except FileNotFoundError:
                left_out[VANISHED] += 1
            except OSError as error:
                left_out[UNKNOWN] += 1
                failed = failed or error
            else:
                yield Stored(name, status.st_size, versions.of_file(status))
    if failed:
        raise failed


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry of a folder is that is neither a folder nor a file."""
    if not entry.is_symlink():
        return "devices, pipes and sockets"
    if os.path.isdir(entry.path):
        return "links to folders"
    return "links to nothing"


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself has no file, like a dangling link
            return False
        raise
