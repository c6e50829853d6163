"""Tar files as streams of headers: plain or compressed, one tar or several in one file."""

from __future__ import annotations

import bz2
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from ops.archives import expansion

_BLOCK = tarfile.BLOCKSIZE
_NO_MARK = "the end mark is missing, so members may have been cut off"
#: The first bytes of a compressed file -> a decompressor of one stream. A tar may begin with a
#: name, and so with "BZh"; the whole start of a bzip2 file it cannot begin with.
_COMPRESSED: tuple[tuple[re.Pattern[bytes], Callable[[], Any]], ...] = (
    (re.compile(rb"\x1f\x8b\x08"), lambda: zlib.decompressobj(31)),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", re.DOTALL), bz2.BZ2Decompressor),
    (re.compile(rb"\xfd7zXZ\x00"), lzma.LZMADecompressor),
)


class Header(NamedTuple):
    """A member of a tar, and the offset at which the next header or end mark begins."""

    info: tarfile.TarInfo
    end: int


class _Unpacked(io.RawIOBase):
    """The content of a compressed file, of one stream or of several that follow each other.

    Python's own readers of bzip2 and xz end in silence at zeros between two streams.
    Seeks forward only. Raises Expands if there is too much of it.
    """

    def __init__(self, file: IO[bytes], decompressor: Callable[[], Any], ratio: float) -> None:
        self._file, self._new, self._ratio = file, decompressor, ratio
        self._size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self._current: Any = decompressor()
        self._packed, self._at = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read up to an offset from the start."""
        if whence != io.SEEK_SET or offset < self._at:
            raise io.UnsupportedOperation("a compressed file is read forwards only")
        while self._at < offset and self._advance(min(offset - self._at, 2**16)):
            pass
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._advance(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _advance(self, most: int) -> bytes:
        data = self._next(most)
        self._at += len(data)
        expansion.check(self._at, self._size, self._ratio)
        return data

    def _next(self, most: int) -> bytes:
        """At least one byte, and at most `most`; none at the end of the last stream."""
        while True:
            if self._current.eof and not self._begin_next_stream():
                return b""
            if not self._packed and self._needs_input():
                self._packed = self._file.read(2**16)
                if not self._packed:
                    raise EOFError("the compressed file ends before its end mark")
            data: bytes = self._current.decompress(self._packed, most)
            self._packed = getattr(self._current, "unconsumed_tail", b"")
            if self._current.eof:
                self._packed = self._current.unused_data
            if data:
                return data

    def _needs_input(self) -> bool:
        return bool(getattr(self._current, "needs_input", True))

    def _begin_next_stream(self) -> bool:
        """Skip zeros between streams; False if the file ends."""
        while not (rest := self._packed.lstrip(b"\x00")):
            self._packed = self._file.read(2**16)
            if not self._packed:
                return False
        self._packed, self._current = rest, self._new()
        return True


def unpacked(file: IO[bytes], ratio: float = expansion.RATIO) -> IO[bytes]:
    """The content of a tar that may be compressed, as its first bytes say: `file` if it is not.

    A compressed one raises Expands where it becomes more than `ratio` times its size.
    """
    start = file.read(10)
    file.seek(0)
    for pattern, decompressor in _COMPRESSED:
        if pattern.match(start):
            return io.BufferedReader(_Unpacked(file, decompressor, ratio))
    return file


def gzip_checksum(file: IO[bytes], size: int) -> str:
    """The CRC with which a gzip file of `size` bytes ends, after a hyphen; empty for others."""
    start = file.read(3)
    file.seek(max(0, size - 8))
    checksum = file.read(4)[::-1].hex()
    file.seek(0)
    return f"-{checksum}" if start == b"\x1f\x8b\x08" and len(checksum) == 8 else ""


class _Tar(tarfile.TarFile):
    """What `tarfile` needs to parse one header; `headers` goes from one to the next."""

    def next(self) -> None:
        return None


def headers(file: IO[bytes], start: int = 0) -> Iterator[Header]:
    """Stream the headers of a tar from an offset at which one begins.

    Several tars may follow each other, with any number of zero blocks between them, as
    `cat a.tar b.tar` and `tar --append` leave them. No header stays in memory.
    Raises tarfile.ReadError where the file is damaged, cut off, or no tar.
    """
    if start:
        file.seek(start)
    tar = _Tar(fileobj=file)
    marked = False  # whether zero blocks came last
    while True:
        at = tar.offset
        _skip_to(file, at)
        try:
            info = tarfile.TarInfo.fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
            marked, tar.offset, tar.pax_headers = True, at + _BLOCK, {}
            continue
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]  # the end of the file
            if marked:
                return
            raise tarfile.ReadError(_NO_MARK if at else "the file is empty") from None
        except (tarfile.HeaderError, RecursionError) as error:
            _refuse(file, at, marked, error)
            return
        if tar.offset <= at or info.size < 0:
            raise tarfile.ReadError(f"the header at byte {at} declares a negative size")
        marked = False
        yield Header(info, tar.offset)


def _skip_to(file: IO[bytes], offset: int) -> None:
    if file.tell() != offset:
        file.seek(offset - 1)
        if not file.read(1):
            raise tarfile.ReadError("unexpected end of data")


def _refuse(file: IO[bytes], at: int, marked: bool, error: Exception) -> None:
    """Raise an error for what is no header; zeros of less than a block are padding."""
    if marked:
        file.seek(at)
        if not any(file.read(_BLOCK)):
            return
        message = f"what follows its end mark, from byte {at}, is no tar ({error})"
        raise tarfile.ReadError(message) from None
    raise tarfile.ReadError(f"the header at byte {at} is damaged ({error})") from None
