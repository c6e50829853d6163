"""Small pictures of a part for people: all of it, its map laid over it, what lies at its peak."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from ops.images.decode import Picture
from ops.results.anomaly_map import Decoded, Map

Small = npt.NDArray[np.uint8]
#: From good to barely recognisable; noise takes the last.
_QUALITIES = (85, 70, 50, 30, 10)


def shrunk(picture: Picture, side: int) -> Small:
    """The picture (h, w[, 3]) in 8 bits, at most `side` pixels either way; never enlarged."""
    small = Image.fromarray(_in_8_bits(picture))
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    return np.asarray(small)


def close_up(picture: Picture, x: int, y: int, side: int) -> Small:
    """The square of `side` pixels around a pixel, moved so that it lies in the picture."""
    left = max(0, min(x - side // 2, picture.width - side))
    top = max(0, min(y - side // 2, picture.height - side))
    part = picture.pixels[top : top + side, left : left + side]
    return _in_8_bits(picture._replace(pixels=part))


def _in_8_bits(picture: Picture) -> Small:
    full = 2**picture.bit_depth
    grey_levels = np.rint(np.arange(full) * (255 / (full - 1))).astype(np.uint8)
    return np.asarray(grey_levels[picture.pixels])


def laid(found: Decoded, picture: Picture, small: Small, outside: float) -> Map:
    """A map's values (h, w) under each pixel of a shrunk picture; `outside` where it has none."""
    height, width = small.shape[:2]
    where = found.geometry
    # Counted from the edges of pixels, input = picture / step - offset.
    across = (picture.width / width / where.step_x, 0, -where.left)
    down = (0, picture.height / height / where.step_y, -where.top)
    image = Image.fromarray(found.values()).transform(
        (width, height),
        Image.Transform.AFFINE,
        (*across, *down),
        Image.Resampling.BILINEAR,
        fillcolor=outside,
    )
    return np.asarray(image, dtype=np.float32)


def data_uri(pixels: Small, most: int) -> str:
    """A picture (h, w[, 3]) as the address of a JPEG of at most `most` bytes, if that can be."""
    for quality in _QUALITIES:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=quality)
        if out.tell() <= most:
            break
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
