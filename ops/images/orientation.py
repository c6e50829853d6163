"""How a camera was held: the EXIF orientation of a file, and arrays turned by it."""

from __future__ import annotations

import io
from typing import Any

import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ops.archives import file_kinds
from ops.images.formats import jpeg, jpeg_xl, tiff

#: EXIF tag 0x0112 (CIPA DC-008, 4.6.4): 1 is upright, 2 to 8 are the other seven of a square.
_TAG = 0x0112
UPRIGHT = 1


def orientation(data: bytes) -> int:
    """The orientation of an image file, 1 to 8; 1 where it names none or cannot be read.

    That of a TIFF is its first page's. A HEIC counts as upright, because every reader turns it.
    """
    try:
        value = _orientation(data)
    except Exception:  # decoders raise anything on damaged files
        return UPRIGHT
    return value if value in range(1, 9) else UPRIGHT


def _orientation(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return int(image.getexif().get(_TAG, UPRIGHT))
    except UnidentifiedImageError:
        return _OWN[file_kinds.kind_of(data) or ""](data)


#: Kinds of which Pillow does not open every file.
_OWN = {"TIFF": tiff.orientation, "JPEG": jpeg.orientation, "JPEG XL": jpeg_xl.orientation}


def upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Stored pixels (H, W, ...) as they are seen upright."""
    if orientation >= 5:  # rows and columns are exchanged
        pixels = pixels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return pixels
