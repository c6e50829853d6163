"""Versions of files: what their bytes can be told by without reading them.

The version of a local file is `SIZE:MTIME:CTIME`, in bytes and in nanoseconds since 1970. Size and
modification time survive `cp -p`, `rsync -t` and writers that set the time; the change time of the
inode is set by the kernel at every write, rename, link and change of permissions, and by no
program. So a file whose bytes changed has another version, and some files have another version
whose bytes are the same. The version of an object on S3 is its etag.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ops.storage.storage_errors import Changed

_LOCAL = re.compile(r"(\d+:-?\d+):-?\d+")
#: A hash in hex or base64, with the number of parts of a multipart upload; no time in digits.
_ETAG = re.compile(r"-?(?!\d+$)[\w+/=]{16,}(-\d+)?", re.ASCII)


class Stored(NamedTuple):
    """One listed object: its path below the listed place, its size in bytes, its version."""

    name: str
    bytes: int
    version: str


def of_file(status: os.stat_result) -> str:
    """The version of a local file."""
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def is_etag(version: str) -> bool:
    """Whether a version has the form of an etag."""
    return _ETAG.fullmatch(version) is not None


def is_known(version: str) -> bool:
    """Whether a version has one of the forms above, so that it can be compared."""
    return _LOCAL.fullmatch(version) is not None or is_etag(version)


def differ(listed: str, read: str) -> bool:
    """Whether a file that is read is another than the one that was listed.

    The change times of local files may differ: nodes with copies of an archive of their own agree
    on sizes and modification times only. A version of any other form than those above, from an
    inventory that another tool made, is not compared.
    """
    if local := _LOCAL.fullmatch(listed):
        now = _LOCAL.fullmatch(read)
        return now is None or local[1] != now[1]
    return is_etag(listed) and listed != read


def differ_in_change_time(listed: str, read: str) -> bool:
    """Whether two versions of a local file have one size and modification time, but differ."""
    return _LOCAL.fullmatch(listed) is not None and listed != read and not differ(listed, read)


def check(location: str, listed: str | None, read: str) -> None:
    """Raise Changed if a version was listed and the file that is read is another."""
    if listed is not None and differ(listed, read):
        raise Changed(f"version {listed} was listed, but it is version {read} now", location)
