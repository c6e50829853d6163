"""Pictures that Pillow reads: 8 bits, or 16 bits of grey."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ops.failure import Failure
from ops.images.formats.depth import Raster, bands
from ops.images.formats.pixel_limit import PixelLimit

Pixels8 = npt.NDArray[np.uint8]
#: Image formats. Pillow's others are documents or video, or need external programs.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
#: The most pixels that a byte of a file can encode, for formats where that is known. A byte of an
#: uncompressed BMP holds 8 of one bit; a run of two bytes 255, a jump of four 255 rows (BMP, RLE8).
_PIXELS_PER_BYTE = {"PPM": 8, "BMP": 2**16, "DIB": 2**16}

#: Pillow's own limit would act before `max_pixels`, which is checked before pixels are decoded.
Image.MAX_IMAGE_PIXELS = None


def read(data: bytes, formats: tuple[str, ...], limit: PixelLimit) -> Raster:
    """Decode a file of one of the formats; a file of several frames is refused."""
    with Image.open(io.BytesIO(data), formats=formats) as image:
        check(image, data, limit)
        return raster_of(image)


def check(image: Image.Image, data: bytes, limit: PixelLimit, capacity: int = 2**62) -> None:
    """Return when an opened image may be decoded. Raises Failure for several frames."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # an MPO is a photograph followed by previews
        message = f"it has {frames} frames or pages; a file must hold one image"
        raise Failure("unsupported", message)
    kind = str(image.format)
    capacity = min(capacity, len(data) * _PIXELS_PER_BYTE.get(kind, 2**62))
    limit.allow(image.width, image.height, capacity, kind)


def raster_of(image: Image.Image) -> Raster:
    """The pixels of an opened image, upright.

    CMYK and palettes become RGB, transparent pixels are blended with black.
    """
    image.load()
    note = _turn_upright(image)
    clear = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):  # I;16 and its byte orders, or 32 bits
        values = np.asarray(image)
        if isinstance(clear, int):
            values = np.where(values == clear, 0, values)
        return Raster(values, note=note)
    return Raster(eight_bits(image), 8, note=note)


def eight_bits(image: Image.Image) -> Pixels8:
    """(H, W) grey or (H, W, 3) RGB, uint8."""
    has_alpha = image.mode in {"RGBA", "LA", "PA", "La", "RGBa"}
    if has_alpha and image.format in {"BMP", "DIB"} and not image.getchannel("A").getbbox():
        image, has_alpha = image.convert("RGB"), False  # writers leave the fourth byte unset
    clear = has_alpha or "transparency" in image.info
    grey = image.mode in ({"L", "LA", "La"} if clear else {"L", "1"})
    width, height = image.size
    out = np.empty((height, width) if grey else (height, width, 3), np.uint8)
    for rows in bands(height, width):
        band = image.crop((0, rows.start, width, rows.stop))
        if clear:
            black = Image.new("RGBA", band.size, (0, 0, 0, 255))
            band = Image.alpha_composite(black, band.convert("RGBA"))
        out[rows] = np.asarray(band.convert("L" if grey else "RGB"))
    return out


def _turn_upright(image: Image.Image) -> str:
    """Apply the orientation of the EXIF data; a note if they are damaged."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # damaged data make Pillow raise anything
        return "its EXIF data are damaged, so a rotation in them was not applied"
    return ""
