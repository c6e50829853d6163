"""Broken images: real files of five formats, damaged in many ways, each by its number alone."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ops.images import synthetic_parts
from tests import pictures
from tests.faults import containers

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif", "BMP": "bmp", "WEBP": "webp"}
#: How pictures are saved: format -> variant -> mode and options of Pillow.
VARIANTS: dict[str, dict[str, tuple[str, dict[str, object]]]] = {
    "JPEG": {
        "colour": ("RGB", {"quality": 90}),
        "fine colour": ("RGB", {"quality": 95, "subsampling": 0}),
        "grey": ("L", {}),
        "CMYK": ("CMYK", {}),
        "progressive": ("RGB", {"progressive": True}),
        "restart marks": ("RGB", {"restart_marker_blocks": 4}),
    },
    "PNG": {
        "colour": ("RGB", {}),
        "alpha": ("RGBA", {}),
        "grey": ("L", {}),
        "grey alpha": ("LA", {}),
        "palette": ("P", {}),
        "clear palette": ("P", {"transparency": 3}),
        "1 bit": ("1", {}),
        "16-bit grey": ("I;16", {}),
        "16-bit colour": ("deep", {}),
    },
    "TIFF": {
        "colour": ("RGB", {}),
        "LZW": ("RGB", {"compression": "tiff_lzw"}),
        "deflate": ("L", {"compression": "tiff_adobe_deflate"}),
        "JPEG inside": ("RGB", {"compression": "jpeg"}),
        "packbits": ("P", {"compression": "packbits"}),
        "CMYK": ("CMYK", {}),
        "alpha": ("RGBA", {}),
        "1 bit": ("1", {"compression": "group4"}),
        "16-bit grey": ("I;16", {}),
        "12 in 16 bits": ("I;12", {"tiffinfo": {281: 4095}}),
    },
    "BMP": {
        "colour": ("RGB", {}),
        "grey": ("L", {}),
        "palette": ("P", {}),
        "alpha": ("RGBA", {}),
        "1 bit": ("1", {}),
    },
    "WEBP": {
        "lossy": ("RGB", {"quality": 90}),
        "lossless": ("RGB", {"lossless": True}),
        "alpha": ("RGBA", {}),
    },
}
FRAMED = ("PNG", "TIFF", "WEBP")
TEXTS = (
    b"this is a text file\n" * 20,
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    b"<html><body><h1>502 Bad Gateway</h1></body></html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    b'Traceback (most recent call last):\n  File "/root/secret.py", line 1, in <module>\n',
)


class Mutant(NamedTuple):
    """A file: what it was, what was done to it, the name it bears, and what it holds now.

    `source` is the file before, where there was one.
    """

    kind: str
    variant: str
    mutation: str
    name: str
    data: bytes
    source: bytes


class Whole(NamedTuple):
    """An undamaged file."""

    kind: str
    variant: str
    data: bytes


Damage = Callable[[Whole, random.Random], bytes]


@functools.cache
def _picture(seed: int, size: int) -> Image.Image:
    product = synthetic_parts.PRODUCTS[seed % 2]
    return Image.fromarray(synthetic_parts.draw(product, seed, size).picture)


@functools.cache
def _photograph(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB").resize((160, 120))


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "RGBA":
        image = image.copy()
        image.putalpha(image.convert("L"))
        return image
    if mode == "LA":
        return Image.merge("LA", [image.convert("L"), image.convert("L")])
    if mode in {"I;16", "I;12"}:
        factor = 257 if mode == "I;16" else 16
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * factor)
    return image.convert(mode)


@functools.lru_cache(2000)
def _saved(kind: str, variant: str, seed: int, size: int, photograph: Path | None) -> bytes:
    image = _photograph(photograph) if photograph else _picture(seed, size)
    mode, options = VARIANTS[kind][variant]
    if mode == "deep":
        return pictures.deep_png(np.asarray(image).astype(np.uint16) * 257)
    return pictures.encoded(_in_mode(image, mode), kind, **options)


def _untouched(whole: Whole, _: random.Random) -> bytes:
    return whole.data


def _flipped(whole: Whole, rng: random.Random, end: int | None = None) -> bytes:
    out = bytearray(whole.data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        out[rng.randrange(min(end or len(out), len(out)))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _flipped_head(whole: Whole, rng: random.Random) -> bytes:
    return _flipped(whole, rng, end=rng.choice((32, 128)))


def _overwritten(whole: Whole, rng: random.Random) -> bytes:
    length = rng.randrange(1, len(whole.data) // 2)
    start = rng.randrange(len(whole.data) - length)
    filling = rng.randbytes(length) if rng.random() < 0.5 else bytes(length)
    return whole.data[:start] + filling + whole.data[start + length :]


def _cut(whole: Whole, rng: random.Random) -> bytes:
    # Lost transfers end anywhere; those within the last bytes are the ones easily overlooked.
    lost = rng.choice((rng.randrange(1, 20), rng.randrange(1, len(whole.data))))
    return whole.data[: max(1, len(whole.data) - lost)]


def _zero_tail(whole: Whole, rng: random.Random) -> bytes:
    start = rng.randrange(1, len(whole.data))
    return whole.data[:start] + bytes(len(whole.data) - start)


def _foreign_head(whole: Whole, rng: random.Random) -> bytes:
    other = rng.choice([kind for kind in SUFFIXES if kind != whole.kind])
    head = _saved(other, next(iter(VARIANTS[other])), rng.randrange(9), 48, None)
    length = rng.choice((4, 16, 64, rng.randrange(1, 400)))
    return head[:length] + whole.data[length if rng.random() < 0.5 else 0 :]


def _garbage_behind(whole: Whole, rng: random.Random) -> bytes:
    return whole.data + rng.choice((rng.randbytes(500), bytes(4096), whole.data))


def _gap(whole: Whole, rng: random.Random) -> bytes:
    start = rng.randrange(len(whole.data))
    lost = rng.randrange(1, 600)
    return whole.data[:start] + whole.data[start + lost :]


def _chunks(whole: Whole, rng: random.Random) -> bytes:
    head, chunks, tail = containers.split(whole.kind, whole.data)
    chunks = list(chunks)
    first, second = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    what = rng.randrange(3)
    if what == 0:
        chunks[first], chunks[second] = chunks[second], chunks[first]
    elif what == 1:
        del chunks[first]
    else:
        chunks.insert(first, chunks[second])
    return head + b"".join(chunks) + tail


def _no_pixels(whole: Whole, rng: random.Random) -> bytes:
    width, height = rng.choice(((0, None), (None, 0), (0, 0)))
    return containers.resized(whole.kind, whole.data, width, height)


def _huge(whole: Whole, rng: random.Random) -> bytes:
    side = rng.choice((16_383, 30_000, 65_535, 2**31 - 1, 2**32 - 1))
    return containers.resized(whole.kind, whole.data, side, rng.choice((side, None)))


def _below_the_limit(whole: Whole, rng: random.Random) -> bytes:
    return containers.resized(whole.kind, whole.data, 11_000, 12_000)


def _other_size(whole: Whole, rng: random.Random) -> bytes:
    return containers.resized(whole.kind, whole.data, rng.randrange(1, 400), rng.randrange(1, 400))


def _turned(whole: Whole, rng: random.Random) -> bytes:
    pixels = np.asarray(_picture(rng.randrange(9), 64))[:, :40]
    kind = rng.choice(("JPEG", "PNG", "TIFF", "WEBP")) if whole.kind == "BMP" else whole.kind
    return pictures.exif_rotated(pixels, rng.randrange(0, 11), kind)


def _framed(whole: Whole, rng: random.Random) -> bytes:
    kind = whole.kind if whole.kind in FRAMED else rng.choice(FRAMED)
    return pictures.animated(kind, rng.randrange(2, 5))


def _no_grey(whole: Whole, rng: random.Random) -> bytes:
    """Floating point, or integers of more than 16 bits."""
    grey = np.asarray(_picture(rng.randrange(9), 48).convert("L"))
    factor = rng.choice((70_000, -5))
    values = grey.astype(np.float32) if rng.random() < 0.5 else grey.astype(np.int32) * factor
    return pictures.encoded(values, "TIFF")


def _empty(_: Whole, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\0", bytes(4096)))


def _text(_: Whole, rng: random.Random) -> bytes:
    return rng.choice(TEXTS)


#: Damage -> of a hundred and some images how many have it.
MUTATIONS: dict[str, tuple[Damage, int]] = {
    "untouched": (_untouched, 6),
    "wrong suffix": (_untouched, 3),
    "EXIF rotation": (_turned, 3),
    "animated, pages": (_framed, 3),
    "float, 32 bit": (_no_grey, 2),
    "bits flipped": (_flipped, 15),
    "bits of the head flipped": (_flipped_head, 10),
    "part overwritten": (_overwritten, 8),
    "cut short": (_cut, 12),
    "tail of zeros": (_zero_tail, 6),
    "bytes left out": (_gap, 6),
    "chunks swapped, lost, doubled": (_chunks, 10),
    "head of another format": (_foreign_head, 6),
    "garbage behind": (_garbage_behind, 3),
    "no width or height": (_no_pixels, 3),
    "huge by its head": (_huge, 3),
    "132 megapixels by its head": (_below_the_limit, 2),
    "another size by its head": (_other_size, 5),
    "empty, zeros": (_empty, 2),
    "text": (_text, 2),
}


#: These draw a file of their own.
_OTHERS = {"EXIF rotation", "animated, pages", "float, 32 bit"}


def mutant(seed: int, number: int, photographs: Sequence[Path] = ()) -> Mutant:
    """The broken image of a number; the same arguments give the same bytes.

    A third of them come of `photographs`, where there are any, the others of drawn parts.
    """
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(list(SUFFIXES))
    variant = rng.choice(list(VARIANTS[kind]))
    photograph = rng.choice(photographs) if photographs and rng.random() < 1 / 3 else None
    data = _saved(kind, variant, rng.randrange(12), rng.choice((40, 64, 150)), photograph)
    weights = [weight for _, weight in MUTATIONS.values()]
    mutation = rng.choices(list(MUTATIONS), weights)[0]
    suffix = SUFFIXES[kind]
    if mutation == "wrong suffix":
        suffix = rng.choice([other for other in SUFFIXES.values() if other != suffix])
    damaged = MUTATIONS[mutation][0](Whole(kind, variant, data), rng)
    name = f"{number:05d} {mutation.split(',')[0]}.{suffix}"
    before = damaged if mutation in _OTHERS else data
    return Mutant(kind, variant, mutation, name, damaged, before)
