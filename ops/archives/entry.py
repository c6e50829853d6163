"""One file in an archive, and what decides which files are listed."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import NamedTuple

from ops.archives import expansion

TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
ZIP = (".zip",)
PARQUET = (".parquet", ".pq")
_DRIVE = re.compile("[A-Za-z]:/")
#: What `plain_name` changes: a path from a root or drive, and empty, `.` and `..` parts.
_NOT_PLAIN = re.compile(r"[A-Za-z]:/|/|\.{1,2}(?:/|$)|.*/(?:\.{0,2})(?:/|$)", re.DOTALL)


class Entry(NamedTuple):
    """One file in an archive.

    `member` locates the file in its container: the number of an entry in a zip, of a row in
    Parquet; in a tar the offset of its bytes, or -1 - the offset of its header if it can only be
    read through that header. None for a file of its own. `version` is that of the file or of the
    container (see `ops.storage.versions`); for a member `@` follows, then its place, its size and
    the checksum that the format has. `problem` says why the listing could not read a container or
    a folder.
    """

    name: str
    uri: str
    bytes: int | None
    version: str
    member: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Search:
    """Settings of a listing."""

    column: str = ""
    """The column of Parquet files that holds the images; empty: chosen by name, then content."""
    own: tuple[str, ...] = ()
    """Files and folders that the same command writes or wrote; they are left out."""
    unpack_ratio: float = expansion.RATIO
    """How many times its size an archive may unpack to."""


def file_version(version: str | None) -> str | None:
    """The version of the file or of the whole container, given that of an entry."""
    return version.partition("@")[0] if version else None


def is_container(name: str) -> bool:
    """Whether a file is a tar, a zip or Parquet, by its name."""
    return name.lower().endswith(TAR + ZIP + PARQUET)


def plain_name(name: str) -> str:
    """The name of a member as a path below its container.

    `.`, repeated slashes and a leading `/` or `C:/` are left out, and `..` ends at the container.
    """
    if not _NOT_PLAIN.match(name):
        return name
    return posixpath.normpath("/" + _DRIVE.sub("", name, count=1)).lstrip("/") or name
