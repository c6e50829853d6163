"""Listings of archives: a file, a folder or prefix, tar, zip, or Parquet with a column of images.

Listings are streams: none holds all entries of an archive in memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from ops.archives import parquet_rows, tar_members, zip_members
from ops.archives.damage import raise_unless_damage
from ops.archives.entry import PARQUET, ZIP, Entry, Search, is_container
from ops.archives.expansion import Expands
from ops.archives.other_kinds import misnamed
from ops.archives.system_files import SYSTEM_FILES, is_system_file
from ops.archives.tally import Tally
from ops.errors import UserError
from ops.storage import files, s3, uris
from ops.storage.storage_errors import (
    AccessDenied,
    Changed,
    IsFolder,
    NotFolder,
    NotFound,
    NotRegular,
    StorageError,
)
from ops.storage.versions import Stored

#: Suffixes of the kinds that `ops.images.decode` reads.
IMAGE_SUFFIXES = (
    ".png .jpg .jpeg .jpe .jfif .jls .bmp .dib .tif .tiff .btf .tf8 .webp .gif .pbm .pgm .ppm .pnm "
    ".pam .pfm .jp2 .j2k .j2c .jpx .jpf .jxl .avif .heic .heif .hif"
)
#: Errors that say nothing about other files. S3 answers EINVAL to a bad request.
_OF_ONE_OBJECT = frozenset(
    {errno.EINVAL, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ESTALE}
)
#: Why files of the command's own output folder give no rows.
OWN_OUTPUT = "files of the output folder"
EMPTY = "archives and tables without a member or row"


def entries(
    location: str, search: Search = Search(), tally: Tally | None = None
) -> Iterator[Entry]:
    """Stream everything in an archive, images or not; what gives no entry is counted in `tally`.

    A container or folder that cannot be read becomes an entry with a problem. Raises NotFound if
    the location does not exist, another StorageError if it cannot be listed.
    """
    tally = Tally() if tally is None else tally
    if is_container(location) and files.exists(location):
        yield from _members(location, files.describe(location), "", search, tally)
        return
    if files.exists(location):
        item = files.describe(location)
        yield Entry(item.name, uris.make(location), item.bytes, item.version)
        return
    if not files.is_folder(location):
        raise NotFound(f"there is no file, folder or prefix {location!r}")
    yield from _folder(location, search, tally)


def _folder(location: str, search: Search, tally: Tally) -> Iterator[Entry]:
    own = tuple(path for place in search.own if (path := path_below(location, place)))
    own_folders = tuple(f"{path}/" for path in own)
    closed: list[StorageError] = []
    for item in files.listing(location, tally.left_out, closed):
        name = item.name
        if own and (name in own or name.startswith(own_folders)):
            tally.left_out[OWN_OUTPUT] += 1
            continue
        inside = files.join(location, name)
        if not is_container(name):
            yield Entry(name, uris.make(inside), item.bytes, item.version)
        elif is_system_file(name):
            tally.left_out[SYSTEM_FILES] += 1
        else:
            yield from _members(inside, item, f"{name}/", search, tally)
    for error in closed:
        name = os.path.relpath(error.location, location)
        if name in own or name.startswith(own_folders):
            continue
        problem = f"the folder {error.location} cannot be listed ({error.message})"
        yield Entry(name, uris.make(error.location), None, "", None, problem)


def path_below(location: str, place: str) -> str | None:
    """The path of a place from a folder or prefix that holds it, "." for itself; else None."""
    if s3.is_s3(location) or s3.is_s3(place):
        above, below = location.rstrip("/") + "/", place.rstrip("/") + "/"
        return below.removeprefix(above).rstrip("/") or "." if below.startswith(above) else None
    path = os.path.relpath(os.path.realpath(place), os.path.realpath(location))
    return None if path.split(os.sep)[0] == os.pardir else path


def _members(
    location: str, item: Stored, prefix: str, search: Search, tally: Tally
) -> Iterator[Entry]:
    """The members of one container; what ends the list becomes an entry that describes it."""
    lower = location.lower()
    if lower.endswith(PARQUET):
        found = parquet_rows.rows(location, item, tally, search.column, search.unpack_ratio)
    elif lower.endswith(ZIP):
        found = zip_members.members(location, item, tally)
    else:
        found = tar_members.members(location, item, tally, search.unpack_ratio)
    is_empty, left_out = True, tally.left_out.total()
    try:
        for entry in found:
            is_empty = False
            yield entry._replace(name=prefix + entry.name) if prefix else entry
        if is_empty and tally.left_out.total() == left_out:
            tally.left_out[EMPTY] += 1
    except Exception as error:
        problem = _problem(location, error)
        yield Entry(item.name, uris.make(location), item.bytes, item.version, None, problem)


def _problem(location: str, error: Exception) -> str:
    """Why a container cannot be read. Raises the error again if the store is to blame."""
    denied = error if isinstance(error, StorageError) else error.__context__
    if isinstance(denied, StorageError) and _is_of_one_object(denied):
        return f"{location} cannot be opened: {denied.message}"
    if isinstance(error, Expands):
        return f"{error}; what was listed before that is still scored"
    raise_unless_damage(error)
    if other := misnamed(location, _start(location)):
        return other
    if isinstance(error, UserError):
        return f"no image can be taken from it: {error}"
    return f"the archive is damaged ({error}); what was listed before it is still scored"


def _start(location: str) -> bytes:
    """The first bytes of a file; fewer or none if it is shorter or cannot be read now."""
    with contextlib.suppress(StorageError):
        return files.read_bytes(location, 0, 512)
    return b""


def _is_of_one_object(error: StorageError) -> bool:
    """Whether other objects can be expected to be readable."""
    kinds = (AccessDenied, Changed, IsFolder, NotFolder, NotFound, NotRegular)
    return isinstance(error, kinds) or error.errno in _OF_ONE_OBJECT
