"""From a picture of any size to the detector's input, and from there back to the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ops.images.decode import Picture, Pixels

#: How pictures are exposed before a network sees them; `ops.images.exposure` does it.
Exposure = Literal["as_is", "median", "standard"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class InputSettings:
    """The square that detectors see."""

    size: int = 224
    """Side of the square in pixels."""
    fit: Literal["squash", "crop"] = "squash"
    """squash: the whole picture, its aspect ratio given up; crop: the centre, as papers do."""
    short_side: int = 256
    """With crop: the length that the shorter side gets before the centre is cut out."""
    filter: Literal["bilinear", "lanczos"] = "bilinear"
    """Resampling filter, always with antialiasing."""
    exposure: Exposure = "as_is"
    """For parts whose brightness varies. median: scaled to the same median; standard: scaled and
    shifted to the same mean and contrast. Too dark or too bright as such is then no defect."""


class Geometry(NamedTuple):
    """x_picture = (x_input + 0.5 + left) * step_x - 0.5, and the same for y."""

    step_x: float
    step_y: float
    left: float
    top: float

    def to_picture(self, x: float, y: float) -> tuple[int, int]:
        """The picture's pixel that lies under a pixel of the input."""
        return (
            max(0, round((x + 0.5 + self.left) * self.step_x - 0.5)),
            max(0, round((y + 0.5 + self.top) * self.step_y - 0.5)),
        )


def geometry(width: int, height: int, settings: InputSettings) -> Geometry:
    """How a picture of this size lies under its input."""
    w, h, left, top = _plan(width, height, settings)
    return Geometry(width / w, height / h, left, top)


def _plan(width: int, height: int, settings: InputSettings) -> tuple[int, int, int, int]:
    size = settings.size
    if settings.fit == "squash":
        return size, size, 0, 0
    scale = settings.short_side / min(width, height)
    w, h = max(size, round(width * scale)), max(size, round(height * scale))
    return w, h, (w - size) // 2, (h - size) // 2


def resize(picture: Picture, settings: InputSettings) -> Pixels:
    """The input of one picture: (size, size) or (size, size, 3), same type and depth."""
    w, h, left, top = _plan(picture.width, picture.height, settings)
    resized = _resample(picture.pixels, w, h, _FILTERS[settings.filter])
    return resized[top : top + settings.size, left : left + settings.size]


def _resample(pixels: Pixels, w: int, h: int, kernel: Image.Resampling) -> Pixels:
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize((w, h), kernel), dtype=np.uint8)
    if pixels.ndim == 3:
        planes = [_resample(pixels[..., c], w, h, kernel) for c in range(pixels.shape[2])]
        return np.stack(planes, axis=-1)  # type: ignore[return-value]  # stack widens the dtype
    # Pillow truncates when it resizes 16-bit integers; float planes are rounded here instead.
    plane = np.asarray(Image.fromarray(pixels.astype(np.float32)).resize((w, h), kernel))
    return np.asarray(np.rint(plane).clip(0, 65535), dtype=np.uint16)


def binarise(pixels: Pixels) -> npt.NDArray[np.bool_]:
    """A mask (H, W): what is at least half as bright as its full scale.

    A mask that is nowhere so bright holds numbers of classes; there all that is not 0 counts.
    """
    grey = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    half = 128 if grey.dtype == np.uint8 else 32768
    return np.asarray(grey >= half if grey.max() >= half else grey > 0)


def resize_mask(pixels: Pixels, settings: InputSettings) -> npt.NDArray[np.bool_]:
    """A ground-truth mask at the input's geometry: binary, then resized by nearest."""
    grey = binarise(pixels)
    w, h, left, top = _plan(grey.shape[1], grey.shape[0], settings)
    binary = Image.fromarray(grey.astype(np.uint8))
    resized = np.asarray(binary.resize((w, h), Image.Resampling.NEAREST)) > 0
    return resized[top : top + settings.size, left : left + settings.size]


def pack(pixels: Pixels) -> bytes:
    """Pixels as they cross between processes: little-endian, row by row."""
    return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()


def unpack(data: bytes, channels: int, bit_depth: int, size: int) -> Pixels:
    """Undo `pack`: (channels, size, size), in memory of its own."""
    values = np.frombuffer(data, "<u1" if bit_depth <= 8 else "<u2").copy()
    if channels == 1:
        return values.reshape(1, size, size)
    return np.ascontiguousarray(values.reshape(size, size, channels).transpose(2, 0, 1))
