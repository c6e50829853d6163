"""The one way from the bytes of a file to pixels; raises a `Failure` that gives the reason."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ops.errors import SettingError
from ops.images import jpeg
from ops.images.failure import Failure

#: Image formats. Pillow's others are documents or video, or need external programs.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
#: TIFF tag MaxSampleValue (TIFF 6.0, section 19), which declares a bit depth.
_MAX_SAMPLE_VALUE = 281
#: The most pixels that a byte of a file can encode. A JPEG uses at least one bit for each block of
#: 8 x 8 (ITU-T T.81, F.1.2 and G.1.2); deflate compresses a PNG, of at least 1 bit a pixel, by at
#: most 1032 : 1.
_PIXELS_PER_BYTE = {"JPEG": 8 * 64, "PNG": 8 * 1032}

#: Pillow's own limit would act before `max_pixels`, which is checked before pixels are decoded.
Image.MAX_IMAGE_PIXELS = None

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class DecodeSettings:
    """How files are decoded. Part of the model, because scores depend on it."""

    bit_depth: int | None = None
    """Bits per sample that 16-bit files use (12 for most cameras), unless the file declares it."""
    max_pixels: int = 2**27
    """Images of more pixels are not decoded (status `too_large`)."""

    def __post_init__(self) -> None:
        if self.bit_depth is not None and not 9 <= self.bit_depth <= 16:
            raise SettingError(f"bit_depth {self.bit_depth} must be between 9 and 16")


class Picture(NamedTuple):
    """Decoded pixels: (H, W) grey or (H, W, 3) RGB, uint8 or uint16, upright.

    `bit_depth` is the declared depth: pixels / (2 ** bit_depth - 1) lies in [0, 1].
    """

    pixels: Pixels
    bit_depth: int

    @property
    def width(self) -> int:
        """Pixels from left to right, after any EXIF rotation."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels from top to bottom, after any EXIF rotation."""
        return int(self.pixels.shape[0])


def decode(
    data: bytes,
    settings: DecodeSettings = DecodeSettings(),
    admit: Callable[[int], object] = lambda _: None,
) -> Picture:
    """Decode one image file. The format is read from its content, not from its name.

    CMYK and palettes become RGB, transparent pixels are blended with black, EXIF rotation is
    applied, 16-bit grey images and 16-bit RGB PNG keep all bits (Pillow keeps 8 of the latter).
    `admit` is called with the number of pixels before memory is allocated for them, and may wait.
    Raises Failure (unreadable, unsupported, too_large).
    """
    if not data:
        raise Failure("unreadable", "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of odd metadata, and of decompression bombs: see below
            return _decode(data, settings, admit)
    except Failure:
        raise
    except UnidentifiedImageError:
        raise Failure("unreadable", f"not an image (it starts with {data[:8]!r})") from None
    except MemoryError:
        raise Failure("too_large", "decoding it needs more memory than is free") from None
    except Exception as error:  # a damaged file makes decoders raise anything
        raise Failure(
            "unreadable", f"damaged ({type(error).__name__}: {str(error)[:200]})"
        ) from None


def _decode(data: bytes, settings: DecodeSettings, admit: Callable[[int], object]) -> Picture:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if not width or not height:
            raise Failure("unreadable", f"it has no pixels ({width} x {height})")
        if width * height > settings.max_pixels:
            limit = f"more than the limit of {settings.max_pixels} pixels"
            message = f"{width} x {height} is {limit}; raise --decode.max_pixels"
            raise Failure("too_large", message)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # an MPO is a photograph followed by previews
            message = f"it has {frames} frames or pages; a file must hold one image"
            raise Failure("unsupported", message)
        if width * height > len(data) * _PIXELS_PER_BYTE.get(str(image.format), 2**62):
            message = f"{len(data)} bytes cannot hold {width} x {height} pixels of a {image.format}"
            raise Failure("unreadable", message)
        admit(width * height)
        if image.format == "PNG":
            return _png(data, image, settings)
        if image.format == "JPEG":
            return _jpeg(data, image, settings)
        if image.format == "TIFF":
            _check_strips(image)
        if image.format == "TIFF" and image.mode[:1] in {"R", "L"} and _bits(image) > 8:
            # Pillow returns the upper 8 bits: of 12-bit samples that is almost nothing.
            message = "a colour TIFF of 16 bits cannot be read without loss; PNG can"
            raise Failure("unsupported", message)
        return _from_pillow(image, settings)


def _check_strips(image: Image.Image) -> None:
    """Refuse a TIFF whose strips or tiles do not cover all rows: these would be black."""
    tiles = image.tile  # type: ignore[attr-defined]  # set for every image from a file
    extents = [tile.extents or (0, 0, 0, 0) for tile in tiles]
    covered = sum((right - left) * (low - top) for left, top, right, low in extents)
    if covered < image.width * image.height:
        message = f"damaged (it holds {covered} of {image.width} x {image.height} pixels)"
        raise Failure("unreadable", message)


def _bits(image: Image.Image) -> int:
    """Bits per sample of a TIFF."""
    return int(max(image.tag_v2.get(258, (1,))))  # type: ignore[attr-defined]  # set for every TIFF


def _from_pillow(image: Image.Image, settings: DecodeSettings) -> Picture:
    declared = _declared_depth(image)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise Failure(
            "unsupported",
            "its pixels are floating point, so their black and white levels are unknown",
        )
    if image.mode.startswith("I"):  # I;16 and its byte orders; I is 32 bit, or a 16-bit PGM
        return _deep_grey(np.asarray(image), declared, settings)
    if "transparency" in image.info or image.mode in {"RGBA", "LA", "PA", "La", "RGBa"}:
        layers = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        grey = image.mode in {"L", "LA", "La"}
        image = Image.alpha_composite(black, layers).convert("L" if grey else "RGB")
    elif image.mode in {"1", "L"}:
        image = image.convert("L")
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return Picture(np.asarray(image), 8)


def _declared_depth(image: Image.Image) -> int | None:
    """The bit depth that a file declares for samples of more than 8 bits; None if it does not."""
    if image.format == "PPM":
        return 16  # Pillow scales samples of 9 to 15 bits up
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None
    largest = tags.get(_MAX_SAMPLE_VALUE)
    largest = max(largest) if isinstance(largest, tuple) else largest
    if largest:
        return int(largest).bit_length()
    bits = tags.get(258, (16,))
    return int(bits[0]) if 8 < int(bits[0]) < 16 else None


def _deep_grey(values: npt.NDArray[np.generic], declared: int | None, s: DecodeSettings) -> Picture:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise Failure(
            "unsupported", f"its values run from {low} to {high}; at most 16 bits are supported"
        )
    if declared and (declared > 16 or high >> declared):
        declared = None  # the declaration is wrong
    depth = declared or s.bit_depth or 16
    if depth <= 8:
        return Picture(np.ascontiguousarray(values, np.uint8), depth)
    return Picture(np.ascontiguousarray(values, np.uint16), depth)


def _jpeg(data: bytes, image: Image.Image, settings: DecodeSettings) -> Picture:
    if (unended := jpeg.without_end_mark(data)) is None:
        return _from_pillow(image, settings)
    with Image.open(io.BytesIO(unended), formats=["JPEG"]) as unended_image:
        return _from_pillow(unended_image, settings)


def _png(data: bytes, image: Image.Image, settings: DecodeSettings) -> Picture:
    if data[12:16] != b"IHDR":
        raise Failure("unreadable", "damaged (its header does not come first)")
    depth, colour = struct.unpack_from(">BB", data, 24)
    if colour == 3 and image.palette is None:
        raise Failure("unreadable", "damaged (its palette is missing)")
    # Checks every checksum and the end chunk. Decoders stop at the last row, and decode rows from
    # the zeros of a file that was partly overwritten.
    image.verify()
    if depth == 16 and colour in {2, 4, 6}:
        return _deep_colour_png(data, colour, image.info.get("transparency"), settings)
    with Image.open(io.BytesIO(data), formats=["PNG"]) as unread:  # `verify` has read the first
        return _from_pillow(unread, settings)


def _deep_colour_png(
    data: bytes, colour: int, clear: tuple[int, ...] | None, settings: DecodeSettings
) -> Picture:
    """All bits of a PNG of 16 bits and several channels; Pillow unpacks only 8 at a time."""
    if colour == 4:  # four bytes a pixel: grey and alpha, the high one first
        octets = _unpack_rows(data, "RGBA", "RGBA").astype(np.uint16)
        values = octets[..., ::2] << 8 | octets[..., 1::2]
    else:
        mode = "RGBA" if colour == 6 else "RGB"
        values = _unpack_rows(data, mode, f"{mode};16B").astype(np.uint16) << 8
        values |= _unpack_rows(data, mode, f"{mode};16L")  # takes the low bytes for the high ones
    if clear:  # one colour is declared transparent
        values[(values == clear).all(axis=-1)] = 0
    if values.shape[2] in {2, 4}:  # alpha comes last: blend with black
        alpha, values = values[..., -1].astype(np.uint32), values[..., :-1]
        for channel in range(values.shape[2]):  # rounded; the sum just fits into 32 bits
            values[..., channel] = (values[..., channel] * alpha + 32767) // 65535
    pixels = values[..., 0] if values.shape[2] == 1 else values
    return Picture(np.ascontiguousarray(pixels), settings.bit_depth or 16)


def _unpack_rows(data: bytes, mode: str, layout: str) -> npt.NDArray[np.uint8]:
    """Samples (H, W, channels) of a PNG, upright, whose rows are unpacked by a given layout."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image._mode = mode
        image.tile = [tile._replace(args=layout) for tile in image.tile]
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image)
