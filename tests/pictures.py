"""Small images drawn for tests, encoded in many ways, and ways to damage their files."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image


def texture(seed: int, size: int = 64, colour: bool = False) -> np.ndarray:
    """A good part: soft stripes with a little noise, uint8 (size, size) or (size, size, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    stripes = 120 + 25 * np.sin((x + 0.5 * y) * 0.6 + rng.uniform(0, 6))
    shape = (size, size, 3) if colour else (size, size)
    noise = rng.normal(0, 3, shape)
    return (stripes[..., None] + noise if colour else stripes + noise).clip(0, 255).astype(np.uint8)


def with_blob(pixels: np.ndarray, x: int, y: int, radius: int = 7) -> np.ndarray:
    """A defective part: a bright, speckled disc around (x, y)."""
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    disc = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    out = pixels.copy()
    out[disc] = np.where((rows + columns)[disc] % 4 < 2, 255, 0)
    return out


def bracket(
    seed: int, dx: float = 0.0, dy: float = 0.0, degrees: float = 0.0, noise: float = 0.05
) -> np.ndarray:
    """A good part with a place: a plate with a step and holes, uint8 (128, 128).

    It lies off the centre by shares of the side, and is turned anticlockwise; brightness and noise
    follow from the seed.
    """
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:128, :128] + 0.5) / 128 - 0.5
    x, y, angle = x - dx, y - dy, np.radians(degrees)
    x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    grey = np.where((np.abs(x) < 0.3) & (np.abs(y) < 0.2), 0.7, 0.2)
    grey[(x > 0.1) & (x < 0.3) & (y > -0.2) & (y < -0.05)] = 0.45
    for across, down, radius in ((-0.2, 0.1, 0.05), (-0.22, -0.12, 0.03), (0.2, 0.1, 0.07)):
        grey[np.hypot(x - across, y - down) < radius] = 0.15
    grey = grey * rng.uniform(0.8, 1.2) + rng.normal(0, noise, grey.shape)
    return (grey.clip(0, 1) * 255).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image file."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def animated(kind: str, frames: int = 3) -> bytes:
    """Several different pictures in one file."""
    pictures = [Image.fromarray(texture(seed, 24, colour=True)) for seed in range(frames)]
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])


def exif_rotated(pixels: np.ndarray, orientation: int, kind: str) -> bytes:
    """A file whose EXIF says that it must be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {}
    return encoded(pixels, kind, exif=exif, **options)


def png_chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG with its length and checksum."""
    return struct.pack(">I", len(content)) + name + content + _crc(name + content)


def _crc(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def png_by_hand(
    width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b""
) -> bytes:
    """A PNG of any header, with rows that already begin with their filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), extra, png_chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + png_chunk(b"IEND", b"")


def deep_png(values: np.ndarray, extra: bytes = b"") -> bytes:
    """A 16-bit PNG of (H, W, channels) with 1, 2, 3 or 4 channels."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png_by_hand(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, extra)


def mangled(data: bytes, rng: random.Random) -> bytes:
    """The file cut short, or with one to four bits flipped."""
    if rng.random() < 0.3:
        return data[: rng.randrange(len(data))]
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)
