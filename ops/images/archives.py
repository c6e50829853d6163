"""Listings of archives: a file, a folder or prefix, tar, zip, or Parquet with a bytes column.

Listings are streams: none holds all entries of an archive in memory.
"""

from __future__ import annotations

import gzip
import lzma
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ops.errors import UserError
from ops.storage import files, uris
from ops.storage.storage_errors import NotFound, StorageError

IMAGE_SUFFIXES = (
    ".png .jpg .jpeg .jpe .jfif .bmp .dib .tif .tiff .webp .gif .pgm .ppm .pnm .jp2 .j2k .avif"
)
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ZIP = (".zip",)
PARQUET = (".parquet", ".pq")
_NAME_COLUMNS = ("path", "name", "uri", "filename", "file_name", "key", "__key__")


class Entry(NamedTuple):
    """One file in an archive.

    `member` locates the file in its container: byte offset in a tar, entry number in a zip, row
    number in Parquet; None for a file of its own. `version` is that of the file or the container
    (see `ops.storage.versions`); for a member `@` follows, then its place, its size and the
    checksum that the format has. `problem` describes damage that the listing met.
    """

    name: str
    uri: str
    bytes: int | None
    version: str
    member: int | None = None
    problem: str | None = None


def entries(location: str) -> Iterator[Entry]:
    """Stream everything in an archive, images or not.

    Raises NotFound if the location does not exist, another StorageError if it cannot be read.
    """
    if _is_container(location) and files.exists(location):
        yield from _members(location, files.describe(location), prefix="")
        return
    if files.exists(location):
        item = files.describe(location)
        yield Entry(item.name, uris.make(location), item.bytes, item.version)
        return
    if not files.is_folder(location):
        raise NotFound(f"there is no file, folder or prefix {location!r}")
    for item in files.listing(location):
        inside = files.join(location, item.name)
        if _is_container(item.name):
            yield from _members(inside, item, prefix=f"{item.name}/")
        else:
            yield Entry(item.name, uris.make(inside), item.bytes, item.version)


def _is_container(name: str) -> bool:
    return name.lower().endswith(TAR + ZIP + PARQUET)


def file_version(version: str | None) -> str | None:
    """The version of the file or of the whole archive, given that of an entry."""
    return version.partition("@")[0] if version else None


def is_compressed_tar(location: str) -> bool:
    """Whether a tar is compressed, so that members can only be read from its start."""
    return location.lower().endswith(TAR[1:])


def is_damage(error: Exception) -> bool:
    """Whether an error means that data are damaged, not that they could not be read."""
    if isinstance(error, OSError):  # bz2 and Parquet raise it without a number, file systems with
        return isinstance(error, gzip.BadGzipFile) or (type(error) is OSError and not error.errno)
    damage = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
    return isinstance(error, (*damage, pa.ArrowException, ValueError, UserError))


def raise_unless_damage(error: Exception) -> None:
    """Raise an error of an archive reader again, unless it means that data are damaged."""
    context = error.__context__
    is_storage_error = isinstance(error, StorageError)
    if not is_storage_error and isinstance(context, OSError) and not is_damage(context):
        raise context  # zipfile and tarfile report a failing file as a damaged one
    if not is_damage(error):
        raise error


def _members(location: str, item: files.Stored, prefix: str) -> Iterator[Entry]:
    """The members of one container; damage ends the list with an entry that describes it."""
    lower = location.lower()
    read = _parquet if lower.endswith(PARQUET) else _zip if lower.endswith(ZIP) else _tar
    try:
        for entry in read(location, item):
            yield entry._replace(name=prefix + entry.name)
    except Exception as error:
        raise_unless_damage(error)
        problem = f"the archive is damaged ({error}); what was listed before it is still scored"
        yield Entry(item.name, uris.make(location), item.bytes, item.version, None, problem)


def _tar(location: str, item: files.Stored) -> Iterator[Entry]:
    # `fetch` reads members of a tar at their offsets unless the name says that it is compressed.
    mode: Literal["r:*", "r:"] = "r:*" if is_compressed_tar(location) else "r:"
    with files.open_read(location) as file, tarfile.open(fileobj=file, mode=mode) as tar:
        checksum = _gzip_checksum(location, file, item.bytes)
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # otherwise every header stays in memory
            if member.isreg():
                version = f"{item.version}@{member.offset_data}-{member.size}{checksum}"
                uri = uris.make(location, member.name)
                yield Entry(
                    posixpath.normpath(member.name), uri, member.size, version, member.offset_data
                )
        if not is_compressed_tar(location):
            file.seek(max(0, item.bytes - 512))
            if any(file.read(512)):
                raise tarfile.ReadError("the end mark is missing, so members may have been cut off")


def _gzip_checksum(location: str, file: IO[bytes], size: int) -> str:
    """The CRC of all that a gzip file holds, as its end states it; empty for other files."""
    if not location.lower().endswith((".gz", ".tgz")) or size < 8:
        return ""
    place = file.tell()
    file.seek(size - 8)
    checksum = file.read(4)[::-1].hex()
    file.seek(place)
    return f"-{checksum}"


def _zip(location: str, item: files.Stored) -> Iterator[Entry]:
    with files.open_read(location) as file, zipfile.ZipFile(file) as archive:
        for number, member in enumerate(archive.infolist()):
            if not member.is_dir():
                version = f"{item.version}@{number}-{member.file_size}-{member.CRC:08x}"
                uri = uris.make(location, member.filename)
                yield Entry(member.filename, uri, member.file_size, version, number)


def _parquet(location: str, item: files.Stored) -> Iterator[Entry]:
    with files.open_read(location) as file, pq.ParquetFile(file) as table:
        bytes_column(table.schema_arrow)
        names = _name_column(table.schema_arrow)
        row = 0
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            column = _strings(table.read_row_group(group, columns=[names]), names) if names else []
            for offset in range(count):
                name = (column[offset] if names else None) or f"{row:09d}"
                uri = uris.make(location, f"{row}/{name}")
                yield Entry(name, uri, None, f"{item.version}@{row}", row)
                row += 1


def bytes_column(schema: pa.Schema) -> str:
    """The dotted name of the column that holds image files. Raises UserError if there is none."""
    for field in schema:
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            return str(field.name)
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return f"{field.name}.bytes"
    raise UserError(f"no column of bytes among {schema.names}; one must hold the image files")


def _name_column(schema: pa.Schema) -> str | None:
    for field in schema:
        if field.name in _NAME_COLUMNS and pa.types.is_string(field.type):
            return str(field.name)
        if pa.types.is_struct(field.type) and field.type.get_field_index("path") >= 0:
            return f"{field.name}.path"
    return None


def _strings(table: pa.Table, dotted: str) -> list[str | None]:
    outer, _, inner = dotted.partition(".")
    column = pc.struct_field(table[outer], inner) if inner else table[outer]
    return list(column.to_pylist())
