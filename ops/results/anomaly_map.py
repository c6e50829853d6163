"""Anomaly maps: from patch scores to the input's pixels, to 16-bit PNG, and back."""

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
    """value = offset + scale * grey level: one for all maps of a model, so that nights compare."""

    offset: float
    scale: float

    def levels(self, values: Map) -> npt.NDArray[np.uint16]:
        """Grey levels of values; what lies beyond the scale's ends is drawn at its ends."""
        levels = np.rint((values - self.offset) / self.scale)
        return np.asarray(levels.clip(0, LEVELS - 1), dtype=np.uint16)


@functools.cache
def _stretch(cells: int, size: int, sigma: float) -> npt.NDArray[np.float32]:
    """(size, cells): bilinear up-sampling (align_corners=False), then a Gaussian, as one matrix."""
    # Centre of each pixel in cells, as interpolation without aligned corners has it.
    at = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    bilinear = np.clip(1 - np.abs(at[:, None] - np.arange(cells)), 0, 1)
    smooth = gaussian_filter1d(bilinear, sigma, axis=0) if sigma > 0 else bilinear
    return np.asarray(smooth, dtype=np.float32)


def draw(patch_scores: Map, size: int, sigma: float) -> Map:
    """Patch scores (h, w) as a smooth map (size, size). Both steps are linear and separable."""
    rows = _stretch(patch_scores.shape[0], size, sigma)
    columns = _stretch(patch_scores.shape[1], size, sigma)
    return np.asarray(rows @ patch_scores @ columns.T, dtype=np.float32)


def peak(values: Map, geometry: Geometry) -> tuple[int, int]:
    """X and y of the largest value, in pixels of the picture."""
    y, x = np.unravel_index(int(values.argmax()), values.shape)
    return geometry.to_picture(float(x), float(y))


def encode(values: Map, scale: Scale, geometry: Geometry, model_id: str) -> bytes:
    """A 16-bit grey PNG whose text says how to get values, and pixels of the picture, back."""
    text = PngInfo()
    text.add_text("nightloupe:offset", repr(scale.offset))
    text.add_text("nightloupe:scale", repr(scale.scale))
    text.add_text("nightloupe:geometry", " ".join(repr(float(part)) for part in geometry))
    text.add_text("nightloupe:model_id", model_id)
    out = io.BytesIO()
    # Smooth maps shrink most, and fastest, by runs of equal differences.
    kind = {"compress_level": 1, "compress_type": zlib.Z_RLE}
    Image.fromarray(scale.levels(values)).save(out, "PNG", pnginfo=text, **kind)
    return out.getvalue()


class Decoded(NamedTuple):
    """A map read back: grey levels (h, w), their scale, and where they lie on the picture."""

    levels: npt.NDArray[np.uint16]
    scale: Scale
    geometry: Geometry
    model_id: str

    def values(self) -> Map:
        """The map's values."""
        return (self.scale.offset + self.scale.scale * self.levels).astype(np.float32)


def decode(data: bytes) -> Decoded:
    """Undo `encode`. Raises UserError if it is no map of ours."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            text, mode = dict(image.info), image.mode
            levels = np.asarray(image, dtype=np.uint16)
    except Exception as error:  # decoders raise whatever a damaged file makes them raise
        raise UserError(f"no PNG that can be read ({type(error).__name__}: {error})") from None
    lacking = [name for name in _TEXT if f"nightloupe:{name}" not in text]
    if lacking or mode != "I;16":
        raise UserError(f"this PNG is no map: of mode {mode}, its text lacks {lacking}")
    offset, scale, geometry, model_id = (text[f"nightloupe:{name}"] for name in _TEXT)
    return Decoded(
        levels,
        Scale(float(offset), float(scale)),
        Geometry(*(float(part) for part in geometry.split())),
        model_id,
    )


def blended(
    picture: npt.NDArray[np.uint8], values: Map, scale: Scale, low: float
) -> npt.NDArray[np.uint8]:
    """For people: the picture (h, w[, 3]) in grey with what exceeds `low` in colour, (h, w, 3).

    Colours run from `low` to twice as high, the same for every image.
    """
    from matplotlib import colormaps  # noqa: PLC0415 - a second that few workers need

    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    strength = ((values - low) / max(low - scale.offset, 1e-12)).clip(0, 1)
    colour = colormaps["inferno"](0.35 + 0.65 * strength)[..., :3]
    alpha = 0.75 * np.sqrt(strength)[..., None]
    mixed = (1 - alpha) * (grey[..., None] / 255) + alpha * colour
    return np.asarray(np.rint(mixed * 255), dtype=np.uint8)
