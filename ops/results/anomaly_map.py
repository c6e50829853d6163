"""Anomaly maps: patch scores up-sampled to the input's pixels; 16-bit PNG files, and back."""

from __future__ import annotations

import functools
import io
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.ndimage import gaussian_filter1d

from ops.errors import UserError
from ops.images.resize import Geometry

Map = npt.NDArray[np.float32]
LEVELS = 65536
_TEXT = ("offset", "scale", "geometry", "model_id")


class Scale(NamedTuple):
    """value = offset + scale * grey level. All maps of a model have the same, so nights compare."""

    offset: float
    scale: float

    def levels(self, values: Map) -> npt.NDArray[np.uint16]:
        """Grey levels of values, clipped to [0, 65535]."""
        levels = np.rint((values - self.offset) / self.scale)
        return np.asarray(levels.clip(0, LEVELS - 1), dtype=np.uint16)


@functools.cache
def _upsampling_matrix(cells: int, size: int, sigma: float) -> npt.NDArray[np.float32]:
    """Bilinear up-sampling (align_corners=False), then a Gaussian, as a matrix (size, cells)."""
    # Centres of pixels in units of cells, counted from the centre of the first cell.
    at = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    bilinear = np.clip(1 - np.abs(at[:, None] - np.arange(cells)), 0, 1)
    smooth = gaussian_filter1d(bilinear, sigma, axis=0) if sigma > 0 else bilinear
    return np.asarray(smooth, dtype=np.float32)


def upsample(patch_scores: Map, size: int, sigma: float) -> Map:
    """Patch scores (h, w), up-sampled to (size, size) and smoothed; `sigma` is in input pixels.

    Both steps are linear and separable, so they are one product of matrices per axis.
    """
    rows = _upsampling_matrix(patch_scores.shape[0], size, sigma)
    columns = _upsampling_matrix(patch_scores.shape[1], size, sigma)
    return np.asarray(rows @ patch_scores @ columns.T, dtype=np.float32)


def peak(values: Map, geometry: Geometry) -> tuple[int, int]:
    """X and y of the largest value, in pixels of the picture."""
    y, x = np.unravel_index(int(values.argmax()), values.shape)
    return geometry.to_picture(float(x), float(y))


def encode(values: Map, scale: Scale, geometry: Geometry, model_id: str) -> bytes:
    """A map (h, w) as a 16-bit grey PNG; its text chunks hold scale, geometry and model_id."""
    text = PngInfo()
    text.add_text("nightloupe:offset", repr(scale.offset))
    text.add_text("nightloupe:scale", repr(scale.scale))
    text.add_text("nightloupe:geometry", " ".join(repr(float(value)) for value in geometry))
    text.add_text("nightloupe:model_id", model_id)
    out = io.BytesIO()
    # Run-length encoding of differences compresses smooth maps best, and is the fastest.
    options = {"compress_level": 1, "compress_type": zlib.Z_RLE}
    Image.fromarray(scale.levels(values)).save(out, "PNG", pnginfo=text, **options)
    return out.getvalue()


class Decoded(NamedTuple):
    """A map that was read from a PNG: grey levels (h, w), scale and geometry."""

    levels: npt.NDArray[np.uint16]
    scale: Scale
    geometry: Geometry
    model_id: str

    def values(self) -> Map:
        """The map's values (h, w)."""
        return (self.scale.offset + self.scale.scale * self.levels).astype(np.float32)


def decode(data: bytes) -> Decoded:
    """Undo `encode`. Raises UserError if `data` is not a map that `encode` wrote."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            text, mode = dict(image.info), image.mode
            levels = np.asarray(image, dtype=np.uint16)
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        raise UserError(f"not a readable PNG ({type(error).__name__}: {error})") from None
    missing = [name for name in _TEXT if f"nightloupe:{name}" not in text]
    if missing or mode != "I;16":
        raise UserError(f"this PNG is not an anomaly map: mode {mode}, text without {missing}")
    offset, scale, geometry, model_id = (text[f"nightloupe:{name}"] for name in _TEXT)
    return Decoded(
        levels,
        Scale(float(offset), float(scale)),
        Geometry(*(float(value) for value in geometry.split())),
        model_id,
    )
