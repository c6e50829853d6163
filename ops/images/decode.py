"""The one decode: bytes of a file to pixels as they are, or a `Failure` that says why not."""

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

#: Formats that are pictures; Pillow's others are documents, video, or need outside programs.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
#: TIFF tag that says how large samples can get (TIFF 6.0, section 19): a declared depth.
_MAX_SAMPLE_VALUE = 281
#: The most pixels that a byte of a file can stand for. A JPEG codes each block of 8 x 8 in one bit
#: at least (ITU-T T.81, F.1.2 and G.1.2); a PNG is deflated, to 1 : 1032 at best, from 1 bit each.
_PIXELS_PER_BYTE = {"JPEG": 8 * 64, "PNG": 8 * 1032}

#: Pillow's own limit would hide `max_pixels`, which is asked before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class DecodeSettings:
    """How files become pixels. Part of the model: another setting gives other scores."""

    bit_depth: int | None = None
    """Bits that 16-bit files really use (12 for most cameras), where the file does not say."""
    max_pixels: int = 2**27
    """Larger images are not decoded (status too_large)."""

    def __post_init__(self) -> None:
        if self.bit_depth is not None and not 9 <= self.bit_depth <= 16:
            raise SettingError(f"bit_depth {self.bit_depth} must lie between 9 and 16")


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
    """Decode one image file by its content; its name is never asked.

    CMYK and palette become RGB, transparency is laid over black, EXIF rotation is applied,
    16-bit grey and 16-bit RGB PNG keep their bits (Pillow keeps 8 of the latter).
    `admit` is called with the number of pixels before memory is taken for them, and may wait.
    Raises Failure (unreadable, unsupported, too_large).
    """
    if not data:
        raise Failure("unreadable", "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about odd metadata, and of bombs: see below
            return _decode(data, settings, admit)
    except Failure:
        raise
    except UnidentifiedImageError:
        raise Failure("unreadable", f"not an image (it starts with {data[:8]!r})") from None
    except MemoryError:
        raise Failure("too_large", "decoding it needs more memory than there is") from None
    except Exception as error:  # decoders raise whatever a damaged file makes them raise
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
            message = f"{width} x {height} is {limit}; --decode.max_pixels raises it"
            raise Failure("too_large", message)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # MPO is a photograph with previews behind it
            message = f"it holds {frames} frames or pages; a file must hold one picture"
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
            # Pillow would hand out the upper 8 bits, which of 12 in 16 leaves next to nothing.
            message = "a colour TIFF of 16 bits cannot be read without loss; PNG can"
            raise Failure("unsupported", message)
        return _from_pillow(image, settings)


def _check_strips(image: Image.Image) -> None:
    """Refuse a TIFF whose strips or tiles leave out rows: they would be black."""
    tiles = image.tile  # type: ignore[attr-defined]  # as for every image from a file
    extents = [tile.extents or (0, 0, 0, 0) for tile in tiles]
    held = sum((right - left) * (low - top) for left, top, right, low in extents)
    if held < image.width * image.height:
        message = f"damaged (it holds {held} of {image.width} x {image.height} pixels)"
        raise Failure("unreadable", message)


def _bits(image: Image.Image) -> int:
    """Bits per sample of a TIFF."""
    return int(max(image.tag_v2.get(258, (1,))))  # type: ignore[attr-defined]  # a TIFF has it


def _from_pillow(image: Image.Image, settings: DecodeSettings) -> Picture:
    declared = _declared_depth(image)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise Failure(
            "unsupported", "its pixels are floating point, so black and white are unknown"
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
    """What a file says of deep samples; a TIFF, by bits per sample or the largest value."""
    if image.format == "PPM":
        return 16  # Pillow has scaled what lies between 8 and 16 bits up
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
        raise Failure("unsupported", f"its values run from {low} to {high}; 16 bits are the most")
    if declared and (declared > 16 or high >> declared):
        declared = None  # what the file declares is not so
    depth = declared or s.bit_depth or 16
    if depth <= 8:
        return Picture(np.ascontiguousarray(values, np.uint8), depth)
    return Picture(np.ascontiguousarray(values, np.uint16), depth)


def _jpeg(data: bytes, image: Image.Image, settings: DecodeSettings) -> Picture:
    if (whole := jpeg.endless(data)) is None:
        return _from_pillow(image, settings)
    with Image.open(io.BytesIO(whole), formats=["JPEG"]) as again:
        return _from_pillow(again, settings)


def _png(data: bytes, image: Image.Image, settings: DecodeSettings) -> Picture:
    if data[12:16] != b"IHDR":
        raise Failure("unreadable", "damaged (its header does not come first)")
    depth, colour = struct.unpack_from(">BB", data, 24)
    if colour == 3 and image.palette is None:
        raise Failure("unreadable", "damaged (its palette is missing)")
    # Every checksum, and that the end is there. Decoders stop at the last row; where the file was
    # overwritten with zeros, rows have been made of these.
    image.verify()
    if depth == 16 and colour in {2, 4, 6}:
        return _deep_colour_png(data, colour, image.info.get("transparency"), settings)
    with Image.open(io.BytesIO(data), formats=["PNG"]) as again:  # the first is used up
        return _from_pillow(again, settings)


def _deep_colour_png(
    data: bytes, colour: int, clear: tuple[int, ...] | None, settings: DecodeSettings
) -> Picture:
    """All bits of a PNG of 16 bits and several channels, of which Pillow unpacks 8 at a time."""
    if colour == 4:  # four bytes a pixel: grey and alpha, the high one first
        four = _unpacked(data, "RGBA", "RGBA").astype(np.uint16)
        values = four[..., ::2] << 8 | four[..., 1::2]
    else:
        mode = "RGBA" if colour == 6 else "RGB"
        values = _unpacked(data, mode, f"{mode};16B").astype(np.uint16) << 8
        values |= _unpacked(data, mode, f"{mode};16L")  # as if these bytes were the high ones
    if clear:  # one colour of all stands for nothing
        values[(values == clear).all(axis=-1)] = 0
    if values.shape[2] in {2, 4}:  # alpha last: lay it over black
        alpha, values = values[..., -1].astype(np.uint32), values[..., :-1]
        for channel in range(values.shape[2]):  # rounded; product and half the divisor just fit
            values[..., channel] = (values[..., channel] * alpha + 32767) // 65535
    pixels = values[..., 0] if values.shape[2] == 1 else values
    return Picture(np.ascontiguousarray(pixels), settings.bit_depth or 16)


def _unpacked(data: bytes, mode: str, layout: str) -> npt.NDArray[np.uint8]:
    """(H, W, channels) of a PNG, upright, its rows unpacked as if they had another layout."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image._mode = mode
        image.tile = [tile._replace(args=layout) for tile in image.tile]
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image)
