"""Members of a tar: their listing, and their bytes.

A member is read by what its headers mean: a sparse member has holes, and a link stands for the
member that it names.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Set
from typing import IO, Any, NamedTuple

from ops.archives import expansion
from ops.archives.damage import is_damage, raise_unless_damage
from ops.archives.entry import Entry, plain_name
from ops.archives.expansion import Expands
from ops.archives.tally import Tally
from ops.archives.tar_stream import Header, gzip_checksum, headers, unpacked
from ops.failure import Failure
from ops.storage import files, uris
from ops.storage.versions import Stored

#: Links that lead to links are followed so far.
_LINKS_DEEP = 8
_KINDS = {
    tarfile.CHRTYPE: "devices and pipes in tar files",
    tarfile.BLKTYPE: "devices and pipes in tar files",
    tarfile.FIFOTYPE: "devices and pipes in tar files",
    b"M": "ends of files that began on another volume of a tar",
}
LOST_LINKS = "links in archives that lead to no file in them"
#: Members without content of their own: folders, GNU's lists of folders and names of volumes.
_NO_CONTENT = (tarfile.DIRTYPE, b"D", b"V")
_Sparse = tuple[tuple[int, int], ...]


class Place(NamedTuple):
    """Where a member's bytes lie; `sparse` lists (offset, bytes) of what is stored of it."""

    header: int
    data: int
    size: int
    end: int
    sparse: _Sparse | None

    @classmethod
    def of(cls, header: Header) -> Place:
        """The place of a regular member."""
        info = header.info
        pairs: Any = info.sparse
        sparse = None if pairs is None else tuple(pairs)
        return cls(info.offset, info.offset_data, info.size, header.end, sparse)

    def read(self, file: IO[bytes], limit: int) -> bytes:
        """The member's bytes. Raises a Failure if there are more than `limit`."""
        if self.size > limit:
            raise Failure("too_large", f"its {self.size} bytes are more than the limit of {limit}")
        if self.sparse is None:
            return _read_exactly(file, self.data, self.size)
        out, at = bytearray(self.size), self.data
        for offset, count in self.sparse:
            if min(offset, count) < 0 or offset + count > self.size or at + count > self.end:
                raise tarfile.ReadError(
                    f"its map places {count} bytes at {offset} of its {self.size}"
                )
            out[offset : offset + count] = _read_exactly(file, at, count)
            at += count
        return bytes(out)


class Link(NamedTuple):
    """A hard or symbolic link: its name, and the path in the archive that it leads to, if any."""

    name: str
    target: str | None
    header: int
    is_hard: bool

    @classmethod
    def of(cls, info: tarfile.TarInfo) -> Link:
        """The link of a header."""
        target: str | None = info.linkname
        if info.issym():  # relative to the folder of the link, and never out of the archive
            above = posixpath.dirname(plain_name(info.name))
            target = posixpath.normpath(posixpath.join(above, info.linkname))
            if target.startswith(("/", "../")):
                target = None
        else:
            target = plain_name(info.linkname)
        return cls(info.name, target, info.offset, info.islnk())


def members(
    location: str, item: Stored, tally: Tally, ratio: float = expansion.RATIO
) -> Iterator[Entry]:
    """Stream the regular members of a tar, then its links.

    Raises an error for which `is_damage` holds after what can be listed.
    """
    address, links = uris.make(location), list[Link]()
    damage: Exception | None = None
    with files.open_read(location) as file:
        checksum = gzip_checksum(file, item.bytes)
        stream = unpacked(file, ratio)
        # `fetch` reads members at their offsets from a file that is called .tar.
        by_offset = stream is file or not location.lower().endswith(".tar")

        def entry(name: str, place: Place) -> Entry:
            number = place.data if by_offset and place.sparse is None else -1 - place.header
            version = f"{item.version}@{place.data}-{place.size}{checksum}"
            uri = uris.of_member(address, name)
            return Entry(plain_name(name), uri, place.size, version, number)

        try:
            for header in headers(stream):
                info = header.info
                if info.isreg():
                    yield entry(info.name, Place.of(header))
                elif info.islnk() or info.issym():
                    links.append(Link.of(info))
                elif info.type not in _NO_CONTENT:
                    kind = f"members of kind {info.type!r} in tar files"
                    tally.left_out[_KINDS.get(info.type, kind)] += 1
        except Exception as error:
            raise_unless_damage(error)
            damage = error
    if links:
        for name, place in _linked(location, links, ratio):
            if place:
                yield entry(name, place)
            else:
                tally.left_out[LOST_LINKS] += 1
    if damage:
        raise damage


def _linked(location: str, links: list[Link], ratio: float) -> Iterator[tuple[str, Place | None]]:
    """The place that each link leads to."""
    with files.open_read(location) as file:
        wanted = {link.target for link in links if link.target}
        places = _places(unpacked(file, ratio), wanted)
    by_name = {plain_name(link.name): link for link in links}
    for link in links:
        yield link.name, _follow(link, places, by_name)


def _places(stream: IO[bytes], wanted: Set[str]) -> dict[str, list[Place]]:
    """The places of regular members with these plain names, in the order of the tar."""
    places: dict[str, list[Place]] = {}
    try:
        for header in headers(stream):
            if header.info.isreg() and (name := plain_name(header.info.name)) in wanted:
                places.setdefault(name, []).append(Place.of(header))
    except Exception as error:
        raise_unless_damage(error)  # the listing reports damage
    return places


def _follow(
    link: Link, places: dict[str, list[Place]], links: dict[str, Link], deep: int = 0
) -> Place | None:
    """The member that a link leads to; a hard link leads to one that comes before it."""
    found = places.get(link.target or "", [])
    if link.is_hard:
        found = [place for place in found if place.header < link.header]
    if found:
        return found[-1]
    following = links.get(link.target or "")
    if following is None or deep == _LINKS_DEEP:
        return None
    return _follow(following, places, links, deep + 1)


class TarReader:
    """Reads members of a tar through its headers; a compressed tar is unpacked to disk first."""

    def __init__(self, file: IO[bytes], ratio: float = expansion.RATIO) -> None:
        self.file = file
        stream = unpacked(file, ratio)
        # Its text alone: the error holds this reader, whose files would then stay open.
        self._too_large = ""
        self._file = file if stream is file else self._unpack(stream)
        self._lock = threading.Lock()
        self._members: dict[str | int, Place] = {}  # by name and by number

    def read(self, name: str, member: int | None, limit: int) -> bytes:
        """The bytes of a member by its number or, without one, its name.

        Raises KeyError if there is no such member, or the one of that number has another name.
        """
        with self._lock:
            try:
                return self._place(name, member).read(self._file, limit)
            except (KeyError, EOFError, tarfile.TarError):
                if not self._too_large:
                    raise
                reason = f"its archive was not unpacked: {self._too_large}"
                raise Failure("too_large", reason) from None

    def _place(self, name: str, member: int | None) -> Place:
        if member is None:
            return self._scanned()[name]
        place, own_name = self._at(-1 - member) if member < 0 else self._numbered(member)
        if own_name != name and self._scanned().get(name) != place:  # or a link leads to it
            raise KeyError(name)
        return place

    def _unpack(self, stream: IO[bytes]) -> IO[bytes]:
        """What can be unpacked of a compressed file, on disk. Zeros become holes."""
        plain: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its reader
        try:
            while chunk := stream.read1(2**12):  # type: ignore[attr-defined]
                if chunk.count(0) < len(chunk):
                    plain.write(chunk)
                else:
                    plain.seek(len(chunk), io.SEEK_CUR)
        except Expands as error:
            self._too_large = str(error)
        except Exception as error:
            if not is_damage(error):
                raise
            # truncated or damaged: the members before that can still be read
        plain.truncate()  # a hole at the end counts
        return plain

    def _at(self, offset: int) -> tuple[Place, str]:
        """The member whose header begins at an offset, and its name."""
        self._file.seek(offset)
        header = next(headers(self._file, offset), None)
        if header is None or not header.info.isreg():
            raise KeyError(offset)
        return Place.of(header), header.info.name

    def _numbered(self, member: int) -> tuple[Place, str]:
        """The member whose bytes begin at an offset, and its name."""
        place = self._scanned()[member]
        return self._at(place.header)

    def _scanned(self) -> dict[str | int, Place]:
        """All members by name and by number."""
        if not self._members:
            self._members = self._scan()
        return self._members

    def _scan(self) -> dict[str | int, Place]:
        members: dict[str | int, Place] = {}
        plain: dict[str, list[Place]] = {}
        links: list[Link] = []
        self._file.seek(0)
        try:
            for header in headers(self._file):
                name = header.info.name
                if header.info.isreg():
                    place = Place.of(header)
                    members[name] = members[place.data] = place
                    plain.setdefault(plain_name(name), []).append(place)
                elif header.info.islnk() or header.info.issym():
                    links.append(Link.of(header.info))
        except Exception as error:
            raise_unless_damage(error)  # the listing has reported the damage
        by_name = {plain_name(link.name): link for link in links}
        for link in links:
            if link.name not in members and (target := _follow(link, plain, by_name)):
                members[link.name] = target
        return members


def _read_exactly(file: IO[bytes], start: int, count: int) -> bytes:
    file.seek(start)
    data = file.read(count)
    if len(data) < count:
        raise EOFError(f"the archive ends after {len(data)} of its {count} bytes")
    return data
