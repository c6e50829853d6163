"""TIFF files under a seed, and what is right of each: the values written, or a refusal."""

from __future__ import annotations

import io
import random
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile

from ops.failure import Failure
from ops.images.decode import DecodeSettings, decode
from tests import tiffs

#: Photometric interpretation -> its name and channels.
COLOURS = {
    0: ("WhiteIsZero", 1), 1: ("BlackIsZero", 1), 2: ("RGB", 3), 3: ("palette", 1),
    4: ("mask", 1), 5: ("CMYK", 4), 6: ("YCbCr", 3), 8: ("CIELab", 3),
    32803: ("colour filters", 1), 34892: ("linear", 1),
}  # fmt: skip
#: Encoders of pictures: the number of the compression, and what is written without loss.
IMAGES = {
    "JPEG 2000": (34712, lambda v: imagecodecs.jpeg2k_encode(v, level=0, reversible=True)),
    "JPEG XL": (50002, lambda v: imagecodecs.jpegxl_encode(v, lossless=True)),
    "WebP": (50001, lambda v: imagecodecs.webp_encode(v, lossless=True)),
    "LERC": (34887, imagecodecs.lerc_encode),
    "PNG": (34933, imagecodecs.png_encode),
    "JPEG": (7, lambda v: imagecodecs.jpeg8_encode(v, level=95, subsampling="444")),
}
FAX = {
    "CCITT RLE": (2, "tiff_ccitt"), "CCITT G3": (3, "group3"), "CCITT G4": (4, "group4"),
}  # fmt: skip


class Made(NamedTuple):
    """A file; `pixels` is None if it must be refused, and may differ by `most`."""

    colours: str
    compression: str
    what: str
    data: bytes
    settings: DecodeSettings
    pixels: np.ndarray | None
    depth: int
    most: int = 0


def made(number: int) -> Made:
    """The file of a number."""
    dice, rng = random.Random(number), np.random.default_rng(number)
    kind = dice.random()
    if kind < 0.25:
        return _encoded(number, dice, rng)
    if kind < 0.35:
        return _fax(number, dice, rng)
    return _packed(number, dice, rng)


def _values(dice: random.Random, rng: np.random.Generator, shape: tuple, bits: int) -> np.ndarray:
    smooth = np.cumsum(rng.integers(-3, 4, shape), axis=1) + 2 ** (bits - 1)
    noise = rng.integers(0, 2**bits, shape)
    return smooth.clip(0, 2**bits - 1) if dice.random() < 0.5 else noise


def _packed(number: int, dice: random.Random, rng: np.random.Generator) -> Made:
    """Samples by themselves: any depth, order, layout and predictor, compressed as bytes."""
    meaning = dice.choice(list(COLOURS))
    name, channels = COLOURS[meaning]
    floats = meaning in {1, 2} and dice.random() < 0.15
    depths = {3: [1, 2, 3, 4, 5, 6, 7, 8], 4: [1], 5: [8, 16], 6: [8], 8: [8, 16]}
    bits = 32 if floats else dice.choice(depths.get(meaning, [*range(1, 17), 8, 8, 8, 16, 16, 16]))
    height, width = dice.randint(1, 60), dice.randint(1, 60)
    compression = dice.choice(list(tiffs.COMPRESSIONS))
    options = {
        "order": dice.choice("<>"),
        "compression": compression,
        "predictor": 1 if compression in {"none", "packbits"} else dice.choice([1, 2 + floats]),
        "planar": dice.choice([1, 2]),
        "big": dice.random() < 0.3,
    }
    options |= dice.choice([{}, {"rows": dice.randint(1, height)}, {"tile": (16, 32)}])
    shape, tags, settings = (height, width, channels), {}, DecodeSettings()
    if floats:
        samples = rng.random(shape, dtype=np.float32)
        settings = DecodeSettings(range="0,1")
    else:
        samples = _values(dice, rng, shape, bits)
    if meaning == 3:
        tags = tiffs.colour_map(rng.integers(0, 256, (2**bits, 3)) * 257)
    if meaning == 6:
        tags = {530: (3, [1, 1])}
    pixels, depth = _right(meaning, samples, bits, tags)
    data = tiffs.one(samples, bits, meaning, tags=tags, **options)
    what = f"{number}: {bits} bits, {name}, {options}"
    return Made(name, compression, what, data, settings, pixels, depth)


def _right(
    meaning: int, samples: np.ndarray, bits: int, tags: dict
) -> tuple[np.ndarray | None, int]:
    """The picture of samples (H, W, channels), and its depth."""
    if meaning == 8:
        return None, 0
    if samples.dtype.kind == "f":
        right, depth = np.rint(samples.astype(np.float64) * 65535), 16
    elif meaning == 3:
        colours = np.array(tags[320][1]).reshape(3, -1).T // 257
        right, depth = colours[samples[..., 0]], 8
    elif meaning == 5:
        white, light = 2**bits - 1, 2.0**bits - 1 - samples
        # Pillow rounds products of 8 bits in its own way, by at most one level.
        right, depth = np.floor(light[..., :3] * (light[..., 3:] / white) + 0.5), bits
    elif meaning == 6:
        right, depth = _rgb(samples), 8
    else:
        depth = 8 if bits in {1, 2, 4} else bits
        right = samples * ((2**depth - 1) // (2**bits - 1))
        right = 2**depth - 1 - right if meaning == 0 else right
    return (right[..., 0] if right.shape[2] == 1 else right), depth


def _rgb(samples: np.ndarray) -> np.ndarray:
    y, blue, red = (samples[..., n].astype(float) for n in range(3))
    r, b = (red - 128) * (2 - 2 * 0.299) + y, (blue - 128) * (2 - 2 * 0.114) + y
    g = (y - 0.299 * r - 0.114 * b) / 0.587
    return np.rint(np.stack([r, g, b], -1)).clip(0, 255)


def _encoded(number: int, dice: random.Random, rng: np.random.Generator) -> Made:
    """Strips that are pictures of another format."""
    name = dice.choice(list(IMAGES))
    code, encode = IMAGES[name]
    wide = name in {"JPEG 2000", "JPEG XL", "LERC", "PNG"}
    bits = dice.choice([8, 16]) if wide else 8
    meaning = 2 if name == "WebP" else dice.choice([0, 1, 2] if name != "JPEG" else [0, 1, 6])
    channels = COLOURS[meaning][1]
    height, width = dice.randint(8, 60), dice.randint(8, 60)
    kind = np.uint8 if bits == 8 else np.uint16
    samples = _values(dice, rng, (height, width, channels), bits).astype(kind)
    stored = samples[..., 0] if channels == 1 else samples
    order, tags = dice.choice("<>"), {259: (3, [code])}
    block = bytes(encode(np.ascontiguousarray(stored)))
    if name == "LERC":
        tags[50674] = (4, [4, 0])
        if order == ">":  # its values lie in the order of the file, as libtiff has it
            block = bytes(encode(np.ascontiguousarray(stored).byteswap()))
    if name == "JPEG" and meaning == 6:
        tags[530] = (3, [1, 1])
    _, entries, kind_ = tiffs.page(samples, bits, meaning, order=order, tags=tags)
    data = tiffs.file(([block], entries, kind_), order=order)
    white, most = 2**bits - 1, 0
    if name == "JPEG":  # what libjpeg-turbo decodes; Pillow has another build of it
        stored, most = imagecodecs.jpeg8_decode(block), 3
    right = white - stored if meaning == 0 else stored
    what = f"{number}: {bits} bits, {COLOURS[meaning][0]}, {name}, {order}"
    return Made(COLOURS[meaning][0], name, what, data, DecodeSettings(), right, bits, most)


def _fax(number: int, dice: random.Random, rng: np.random.Generator) -> Made:
    """One bit a pixel as Pillow's libtiff writes it, in both polarities and bit orders."""
    from PIL import Image

    name = dice.choice(list(FAX))
    meaning, fill = dice.choice([0, 1]), dice.choice([1, 2])
    values = (_values(dice, rng, (dice.randint(1, 60), dice.randint(1, 60)), 8) > 128) * 255
    info = {262: meaning, 266: fill}
    if name == "CCITT G3":
        info[292] = dice.choice([0, 1])
    out = io.BytesIO()
    image = Image.fromarray(values.astype(np.uint8)).convert("1")
    image.save(out, "TIFF", compression=FAX[name][1], tiffinfo=info)
    what = f"{number}: 1 bit, {COLOURS[meaning][0]}, {name}, {info}"
    return Made(COLOURS[meaning][0], name, what, out.getvalue(), DecodeSettings(), values, 8)


def wrong(one: Made) -> str | None:
    """What is wrong with the decoding of a file; None if all is right."""
    try:
        picture = decode(one.data, one.settings)
    except Failure as failure:
        refused = one.pixels is None and failure.status == "unsupported"
        return None if refused else f"{one.what}: {failure}"
    if one.pixels is None:
        return f"{one.what}: read, and it must be refused"
    if picture.bit_depth != one.depth or picture.pixels.shape != one.pixels.shape:
        return f"{one.what}: {picture.bit_depth} bits, {picture.pixels.shape}"
    most = 1 if one.colours == "CMYK" and one.depth == 8 else one.most
    if np.abs(picture.pixels.astype(np.int64) - one.pixels).max() > most:
        return f"{one.what}: wrong values"
    return None


def by_tifffile(one: Made) -> bool | None:
    """Whether tifffile reads the samples alike; None where it reads other things than pixels."""
    grey = one.colours in {"WhiteIsZero", "BlackIsZero", "mask", "colour filters", "linear"}
    if one.pixels is None or one.settings.range or not (grey or one.colours == "RGB"):
        return None
    with tifffile.TiffFile(io.BytesIO(one.data)) as file:
        page = file.pages.first
        if page.predictor == 2 and page.bitspersample not in {8, 16, 32}:
            return None  # sums in a wider type, which wrap elsewhere
        found = page.asarray(maxworkers=1).astype(np.int64)
        found = np.moveaxis(found, 0, -1) if page.planarconfig == 2 and found.ndim == 3 else found
        bits = page.bitspersample
    found = found.reshape(one.pixels.shape) * ((2**one.depth - 1) // (2**bits - 1))
    found = 2**one.depth - 1 - found if one.colours == "WhiteIsZero" else found
    picture = decode(one.data, one.settings).pixels
    return bool(np.abs(found - picture).max() <= one.most)
