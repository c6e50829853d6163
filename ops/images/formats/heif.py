"""HEIC by libheif, and AVIF: of 8 bits by Pillow, deeper with all bits by libavif."""

from __future__ import annotations

import io
import re

import imagecodecs
import numpy as np
import pi_heif
from PIL import Image

from ops.failure import Failure
from ops.images.formats import pillow_files
from ops.images.formats.depth import Raster, with_alpha
from ops.images.formats.pixel_limit import PixelLimit

pi_heif.options.DECODE_THREADS = 0  # in the calling thread
_ORIENTATION = 0x0112
#: The box of AV1's configuration; a bit of its third byte says that samples have over 8 bits
#: (AV1 Codec ISO Media File Format Binding, section 2.3.3).
_AV1_CONFIGURATION = re.compile(rb"av1C(..)(.)", re.DOTALL)


def read_avif(data: bytes, limit: PixelLimit) -> Raster:
    """Decode an AVIF of 8, 10 or 12 bits."""
    deep = [found[2][0] & 0x60 for found in _AV1_CONFIGURATION.finditer(data) if found[2][0] & 0x40]
    if not deep:
        return pillow_files.read(data, ("AVIF",), limit)
    with Image.open(io.BytesIO(data), formats=["AVIF"]) as image:
        pillow_files.check(image, data, limit)
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    values = imagecodecs.avif_decode(data, numthreads=1)
    depth = 8 if values.dtype == np.uint8 else 12 if 0x60 in deep else 10
    return with_alpha(values, depth)._replace(orientation=orientation)


def read_heic(data: bytes, limit: PixelLimit) -> Raster:
    """Decode a HEIC of one picture, beside thumbnails and depth maps; libheif turns it upright."""
    file = pi_heif.open_heif(data, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    if len(file) > 1:
        message = f"it has {len(file)} pictures; a file must hold one image"
        raise Failure("unsupported", message)
    image = file[file.primary_index]
    width, height = image.size
    limit.allow(width, height, kind="HEIC")
    depth = int(str(image.info["bit_depth"]))
    # A copy, as the array's memory ends with `image`; rows may be filled up beyond its width.
    values = np.array(image)[:, :width]
    if values.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)} or depth > 16:
        raise Failure("unsupported", f"it is a HEIC of {values.dtype} samples")
    raster = with_alpha(values, depth)
    return raster._replace(alpha=None) if image.premultiplied_alpha else raster
