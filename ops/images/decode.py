"""The one way from the bytes of a file to pixels; raises a `Failure` that gives the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from ops.archives import file_kinds
from ops.errors import SettingError
from ops.failure import Failure
from ops.images import orientation
from ops.images.formats import (
    depth,
    heif,
    jpeg,
    jpeg2000,
    jpeg_xl,
    netpbm,
    pillow_files,
    png,
    tiff,
)
from ops.images.formats.depth import Raster
from ops.images.formats.pixel_limit import PixelLimit

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
_Reader = Callable[[bytes, PixelLimit], Raster]
#: Formats that Pillow alone reads.
_PILLOW = {"BMP": ("BMP", "DIB"), "GIF": ("GIF",), "WebP": ("WEBP",)}
#: Kinds of `ops.archives.file_kinds` but TIFF, which takes a page, and JPEG, which takes a side.
_READERS: dict[str, _Reader] = {
    "PNG": png.read,
    "JPEG 2000": jpeg2000.read,
    "JPEG XL": jpeg_xl.read,
    "HEIC": heif.read_heic,
    "AVIF": heif.read_avif,
    "PNM": netpbm.read,
}


@dataclass(frozen=True)
class DecodeSettings:
    """How files are decoded. Part of the model, because scores depend on it."""

    bit_depth: int | None = None
    """Bits per sample that 16-bit files use (12 for most cameras). Values beyond it are refused.
    Without it they use 16, unless a TIFF declares fewer. Files whose format declares a depth, such
    as TIFF of packed samples or JPEG 2000, use that."""
    page: int | None = None
    """Page to read, counted from 1. Without it TIFF files of several pages are refused; with it
    files of fewer pages, which other kinds than TIFF have one of. Animations are refused."""
    range: str | None = None
    """Black and white of floating-point files, such as `0,1`; without it these files, and with it
    values outside of it, are refused."""
    max_pixels: int = 2**27
    """Images of more pixels are not decoded (status `too_large`)."""

    def __post_init__(self) -> None:
        if self.bit_depth is not None and not 9 <= self.bit_depth <= 16:
            raise SettingError(f"bit_depth {self.bit_depth} must be between 9 and 16")
        if self.page is not None and self.page < 1:
            raise SettingError(f"page {self.page} must be at least 1")
        try:
            _ = self.limits
        except ValueError:
            rule = "must be two numbers, black and then a larger one for white, such as 0,1"
            raise SettingError(f"range {self.range!r} {rule}") from None

    @property
    def limits(self) -> tuple[float, float] | None:
        """Black and white of floating-point files. Raises ValueError for another text."""
        return depth.parse_range(self.range) if self.range is not None else None


class Picture(NamedTuple):
    """Decoded pixels: (H, W) grey or (H, W, 3) RGB, uint8 or uint16, upright.

    `bit_depth` is the declared depth: pixels / (2 ** bit_depth - 1) lies in [0, 1].
    """

    pixels: Pixels
    bit_depth: int
    note: str = ""
    """What was left out of the file without harm to the pixels."""

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
    least_side: int | None = None,
) -> Picture:
    """Decode one image file. The format is read from its content, not from its name.

    CMYK and palettes become RGB, transparent pixels are blended with black, EXIF rotation is
    applied, samples of up to 16 bits keep all bits. `admit` is called with the number of pixels
    before memory is allocated for them, and may wait. No thread is started, but one for HEIC.
    With `least_side` a JPEG of 8 bits is decoded at 1/2, 1/4 or 1/8 of its size if its longer side
    then still has so many pixels: for pictures to look at, never for scores.
    Raises Failure (unreadable, unsupported, too_large).
    """
    if not data:
        raise Failure("unreadable", "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            limit = PixelLimit(settings.max_pixels, admit)
            raster = _read(data, settings, limit, least_side)
            return _picture(raster, settings)
    except Failure:
        raise
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except MemoryError:
        raise Failure("too_large", "decoding it needs more memory than is free") from None
    except Exception as error:  # a damaged file makes decoders raise anything
        words = " ".join(str(error)[:200].split())
        raise Failure("unreadable", f"damaged ({type(error).__name__}: {words})") from None


def _read(
    data: bytes, settings: DecodeSettings, limit: PixelLimit, least_side: int | None
) -> Raster:
    kind = file_kinds.kind_of(data)
    if kind == "TIFF":
        return tiff.read(data, settings.page, limit)
    if kind == "JPEG":
        raster = jpeg.read(data, limit, least_side)
    else:
        raster = _read_single(data, kind, limit)
    if (settings.page or 1) > 1:
        message = f"it is a {kind}, which has 1 page, so there is no --decode.page {settings.page}"
        raise Failure("unsupported", message)
    return raster


def _read_single(data: bytes, kind: str | None, limit: PixelLimit) -> Raster:
    """A file of a kind without pages; one of several frames or pictures is refused."""
    if kind in _READERS:
        return _READERS[kind](data, limit)
    try:
        return pillow_files.read(data, _PILLOW.get(kind or "", pillow_files.FORMATS), limit)
    except OSError as error:
        if kind == "BMP" and str(error).startswith("Unsupported BMP"):
            raise Failure("unsupported", f"it is a BMP that is not read ({error})") from None
        raise


def _unidentified(data: bytes) -> Failure:
    if kind := file_kinds.kind_of(data):
        return Failure("unreadable", f"damaged (its header is not that of a {kind} file)")
    if name := file_kinds.unread_kind_of(data):
        return Failure("unsupported", f"it is {name}, which is not read")
    return Failure("unreadable", f"not an image (it starts with {data[:8]!r})")


def _picture(raster: Raster, settings: DecodeSettings) -> Picture:
    """Black becomes 0, transparency black, and the picture upright."""
    values, alpha = raster.values, raster.alpha
    if values.dtype.kind == "f":
        if alpha is not None:
            raise Failure("unsupported", "its pixels are floating point with transparency")
        values, bits = depth.to_levels(values, settings.limits), 16
    elif raster.depth is None:
        bits = depth.of_container(values, settings.bit_depth, raster.largest)
    else:
        bits = raster.depth
    white = depth.largest_value(bits)
    values = np.asarray(values, np.uint8 if bits <= 8 else np.uint16)
    if raster.white_is_zero:
        values = np.subtract(white, values, out=values)
    if alpha is not None:
        # Alpha of 16-bit files has 16 bits, but for those whose samples all have fewer.
        full = 65535 if raster.depth is None and int(alpha.max()) > white else white
        values = depth.over_black(values, alpha, full)
    pixels = np.ascontiguousarray(orientation.upright(values, raster.orientation))
    return Picture(pixels, bits, raster.note)
