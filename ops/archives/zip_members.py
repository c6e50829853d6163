"""Members of a zip: their listing, and their bytes."""

from __future__ import annotations

import bz2
import contextlib
import posixpath
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from ops.archives.entry import Entry, plain_name
from ops.archives.tally import Tally
from ops.archives.tar_members import LOST_LINKS
from ops.failure import Failure
from ops.storage import files, uris
from ops.storage.versions import Stored

#: Head of an extra field: kind and bytes. The kind that holds a name in Unicode, and the flag of a
#: member whose own name is in UTF-8.
_FIELD = struct.Struct("<HH")
_UNICODE_PATH, _IS_UTF8 = 0x7075, 0x800
#: Longer targets of links are no paths.
_LONGEST_PATH = 4096
#: Compressions that zipfile unpacks only as far as it is asked to.
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def members(location: str, item: Stored, tally: Tally) -> Iterator[Entry]:
    """Stream the members of a zip.

    Raises zipfile.BadZipFile for a damaged zip, and after the last member for a zip that follows
    another in one file: a reader sees the last directory only.
    """
    with files.open_read(location) as file, zipfile.ZipFile(file) as archive:
        infos, address = archive.infolist(), uris.make(location)
        if any(info.volume for info in infos):
            raise zipfile.BadZipFile(
                "it is a part of a split zip; join the parts: zip -s 0 split.zip --out whole.zip"
            )
        for number, info in enumerate(infos):
            if info.filename.endswith(("/", "\\")):
                continue
            content = _target(archive, info) if _is_link(info) else info
            if content is None:
                tally.left_out[LOST_LINKS] += 1
                continue
            version = f"{item.version}@{number}-{content.file_size}-{content.CRC:08x}"
            uri = uris.of_member(address, info.filename)
            # Some programs of Windows write backslashes, against APPNOTE.TXT, 4.4.17.1.
            name = plain_name(_unicode_name(info).replace("\\", "/"))
            yield Entry(name, uri, content.file_size, version, number)
        first = min((info.header_offset for info in infos), default=archive.start_dir)
        file.seek(0)
        if first and file.read(4) == b"PK\x03\x04":
            raise zipfile.BadZipFile(
                f"the first {first} bytes hold another zip, whose directory no reader sees; "
                "store it as a file of its own"
            )


def _unicode_name(info: zipfile.ZipInfo) -> str:
    """The name of a member, in Unicode where the zip has it beside that of an old code page.

    APPNOTE.TXT, 4.6.9: version 1, the CRC of the other name, the name in UTF-8.
    """
    extra = info.extra
    while len(extra) >= _FIELD.size:
        kind, size = _FIELD.unpack_from(extra)
        content, extra = extra[_FIELD.size : _FIELD.size + size], extra[_FIELD.size + size :]
        if kind != _UNICODE_PATH or len(content) <= 5 or info.flag_bits & _IS_UTF8:
            continue
        crc = zlib.crc32(info.orig_filename.encode("cp437"))
        if content[0] == 1 and int.from_bytes(content[1:5], "little") == crc:
            with contextlib.suppress(UnicodeDecodeError):
                return content[5:].decode()
    return info.filename


def _is_link(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a symbolic link: zip keeps the mode of a Unix file in the upper half."""
    return stat.S_ISLNK(info.external_attr >> 16)


def _target(archive: zipfile.ZipFile, link: zipfile.ZipInfo) -> zipfile.ZipInfo | None:
    """The member that a link leads to, if it is a file of the archive."""
    if link.file_size > _LONGEST_PATH or link.flag_bits & 1:
        return None
    with archive.open(link) as file:
        path = file.read(_LONGEST_PATH).decode("utf-8", "surrogateescape")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(plain_name(link.filename)), path))
    found = archive.NameToInfo.get(target)
    return None if found is None or _is_link(found) else found


class ZipReader:
    """Reads members of a zip."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._archive = zipfile.ZipFile(file)

    def read(self, name: str, member: int | None, limit: int) -> bytes:
        """The bytes of a member by its number or, without one, its name. Raises KeyError."""
        members = self._archive.infolist()
        if member is not None and member >= len(members):
            raise KeyError(member)
        info = self._archive.getinfo(name) if member is None else members[member]
        if info.filename != name:
            raise KeyError(name)
        if _is_link(info):
            target = _target(self._archive, info)
            if target is None:
                raise KeyError(name)
            info = target
        if info.file_size > limit:
            message = f"its {info.file_size} bytes are more than the limit of {limit}"
            raise Failure("too_large", f"{message}; --fetch.max_bytes raises it")
        with self._archive.open(info) as file:
            if info.compress_type in _BOUNDED:
                return file.read(limit + 1)  # the size in the header of a zip bomb is wrong
            if info.compress_type == zipfile.ZIP_BZIP2:
                file._decompressor = _BoundedBzip2(limit + 1)  # type: ignore[attr-defined]
            return _read_in_steps(file, limit + 1)


class _BoundedBzip2:
    """Unpacks up to a number of bytes. zipfile's own unpacks all that it was given at once."""

    def __init__(self, most: int) -> None:
        self._bzip2, self._left, self.eof = bz2.BZ2Decompressor(), most, False

    def decompress(self, data: bytes) -> bytes:
        """What the data become, as far as the bound."""
        out = self._bzip2.decompress(data, self._left)
        self._left -= len(out)
        self.eof = self._bzip2.eof or not self._left
        return out


def _read_in_steps(file: IO[bytes], most: int) -> bytes:
    """Read up to `most` bytes, a little of the packed bytes at a time: LZMA has no bound."""
    out = bytearray()
    while len(out) < most and (data := file.read1(2**12)):  # type: ignore[attr-defined]
        out += data
    return bytes(out[:most])
