"""Writes TIFF files by hand, bit by bit, and so independently of the reader (TIFF 6.0)."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Mapping

import imagecodecs
import numpy as np

COMPRESSIONS = {"none": 1, "lzw": 5, "deflate": 8, "packbits": 32773, "lzma": 34925, "zstd": 50000}
#: Types of TIFF: number -> size and format.
_TYPES = {1: (1, "B"), 2: (1, "s"), 3: (2, "H"), 4: (4, "I"), 5: (8, "II"), 16: (8, "Q")}


def _packbits(data: bytes) -> bytes:
    """Literal runs, and a run of equal bytes where there are at least three."""
    out, at = bytearray(), 0
    while at < len(data):
        run = 1
        while run < 128 and data[at : at + 1] * (run + 1) == data[at : at + run + 1]:
            run += 1
        if run >= 3:
            out += bytes([257 - run, data[at]])
            at += run
            continue
        literal = data[at : at + 100]
        out += bytes([len(literal) - 1]) + literal
        at += len(literal)
    return bytes(out)


def _compress(data: bytes, compression: str) -> bytes:
    if compression == "lzw":
        return bytes(imagecodecs.lzw_encode(data))
    if compression == "zstd":
        return bytes(imagecodecs.zstd_encode(data))
    coders = {"none": bytes, "deflate": zlib.compress, "packbits": _packbits, "lzma": lzma.compress}
    return coders[compression](data)


def _coded(block: np.ndarray, bits: int, order: str, predictor: int) -> bytes:
    """Rows (H, W, S) of a strip or tile, packed and each filled up to a whole byte."""
    if predictor == 3:
        size = block.dtype.itemsize
        big = block.astype(block.dtype.newbyteorder(">")).reshape(len(block), -1)
        octets = big.view(np.uint8).reshape(len(block), -1, size).transpose(0, 2, 1)
        flat = np.ascontiguousarray(octets).reshape(len(block), -1)
        step = block.shape[2]
        flat[:, step:] = flat[:, step:] - flat[:, :-step].copy()
        return flat.tobytes()
    if block.dtype.kind == "f":
        return block.astype(block.dtype.newbyteorder(order)).tobytes()
    values = block.astype(np.int64)
    if predictor == 2:
        values[:, 1:] = np.diff(values, axis=1)
    values %= 2**bits
    if bits in {8, 16, 32}:
        return values.astype(f"{order}u{bits // 8}").tobytes()
    rows = values.reshape(len(values), -1, 1) >> np.arange(bits)[::-1] & 1
    return np.packbits(rows.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def page(
    samples: np.ndarray,
    bits: int,
    photometric: int | None = 1,
    *,
    order: str = "<",
    planar: int = 1,
    compression: str = "none",
    predictor: int = 1,
    rows: int | None = None,
    tile: tuple[int, int] | None = None,
    sample_format: int | None = None,
    tags: Mapping[int, tuple[int, list[int]]] | None = None,
) -> tuple[list[bytes], dict[int, tuple[int, list[int] | bytes]], str]:
    """The strips or tiles of one page, and its tags but for their offsets; see `file`.

    `samples` (H, W) or (H, W, S); `rows` of a strip; `tile` height and width.
    """
    cube = samples[..., None] if samples.ndim == 2 else samples
    height, width, channels = cube.shape
    planes = [cube] if planar == 1 else [cube[..., c : c + 1] for c in range(channels)]
    down, across = tile or (rows or height, width)
    blocks = []
    for plane in planes:
        for top in range(0, height, down):
            for left in range(0, width, across):
                block = plane[top : top + down, left : left + across]
                if tile:
                    short = (down - block.shape[0], across - block.shape[1])
                    block = np.pad(block, ((0, short[0]), (0, short[1]), (0, 0)), mode="edge")
                blocks.append(_compress(_coded(block, bits, order, predictor), compression))
    entries: dict[int, tuple[int, list[int] | bytes]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels),
        259: (3, [COMPRESSIONS[compression]]), 277: (3, [channels]), 284: (3, [planar]),
    }  # fmt: skip
    if photometric is not None:
        entries[262] = (3, [photometric])
    if predictor != 1:
        entries[317] = (3, [predictor])
    if tile:
        entries |= {322: (3, [across]), 323: (3, [down])}
    else:
        entries[278] = (4, [down])
    if sample_format or samples.dtype.kind == "f":
        entries[339] = (3, [sample_format or 3] * channels)
    entries |= tags or {}
    return blocks, entries, "tile" if tile else "strip"


def file(*pages: tuple[list[bytes], dict, str], order: str = "<", big: bool = False) -> bytes:
    """A TIFF, or a BigTIFF, of pages that `page` made in the same byte order."""
    mark = b"II" if order == "<" else b"MM"
    long, slot = ("Q", 8) if big else ("I", 4)
    head = struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0)))
    out = bytearray(mark + head)
    link = len(out) - slot
    for blocks, entries, kind in pages:
        offsets = []
        for block in blocks:
            out += bytes(len(out) % 2)
            offsets.append(len(out))
            out += block
        numbers = (324, 325) if kind == "tile" else (273, 279)
        sizes = [len(block) for block in blocks]
        every = entries | {numbers[0]: (4, offsets), numbers[1]: (4, sizes)}
        fields = []
        for code, (type_, values) in sorted(every.items()):
            data = values if isinstance(values, bytes) else b""
            if not data:
                data = struct.pack(f"{order}{len(values)}{_TYPES[type_][1]}", *values)
            count = len(data) // _TYPES[type_][0]
            if len(data) > slot:
                out += bytes(len(out) % 2)
                at = len(out)
                out += data
                data = struct.pack(order + long, at)
            field = struct.pack(order + "HH" + long, code, type_, count)
            fields.append(field + data.ljust(slot, b"\0"))
        out += bytes(len(out) % 2)
        struct.pack_into(order + long, out, link, len(out))
        out += struct.pack(order + ("Q" if big else "H"), len(fields)) + b"".join(fields)
        link = len(out)
        out += bytes(slot)
    return bytes(out)


def one(samples: np.ndarray, bits: int, photometric: int | None = 1, **options: object) -> bytes:
    """A TIFF of one page."""
    big = bool(options.pop("big", False))
    order = str(options.get("order", "<"))
    return file(page(samples, bits, photometric, **options), order=order, big=big)


def colour_map(colours: np.ndarray) -> dict[int, tuple[int, list[int]]]:
    """The tag ColorMap of colours (N, 3) of 16 bits."""
    return {320: (3, [int(v) for v in colours.T.reshape(-1)])}
