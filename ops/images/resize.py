"""Resizes images of any size to the input of a detector, and maps coordinates back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ops.images.decode import Picture, Pixels

#: How the exposure of images is normalised, in `ops.images.exposure`.
Exposure = Literal["as_is", "median", "standard"]

_Box = tuple[float, float, float, float]
#: A picture is resized as a whole up to so many pixels, and otherwise where the input keeps it: the
#: shorter side of a strip may have to grow by a large factor.
_WHOLE = 2**23
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class InputSettings:
    """The square input of a detector."""

    size: int = 224
    """Side of the square, in pixels. For a fit the default is 0, the size of the backbone's
    configuration: 224 for torchvision."""
    fit: Literal["squash", "crop"] = "squash"
    """`squash` resizes the whole image and ignores its aspect ratio; `crop` resizes the shorter
    side to `short_side` and cuts out the centre, as in most papers."""
    short_side: int = 256
    """With `crop`: length of the shorter side, in pixels, before the centre is cut out."""
    filter: Literal["bilinear", "lanczos"] = "bilinear"
    """Resampling filter, with antialiasing."""
    exposure: Exposure = "as_is"
    """Normalises the brightness of each image: `median` scales it to a fixed median, `standard` to
    a fixed mean and standard deviation, `as_is` keeps it. With the first two, an image that is too
    dark or too bright as a whole is not an anomaly."""


class Geometry(NamedTuple):
    """x_image = (x_input + 0.5 + left) * step_x - 0.5, and the same for y with top and step_y."""

    step_x: float
    step_y: float
    left: float
    top: float

    def to_picture(self, x: float, y: float) -> tuple[int, int]:
        """The pixel of the image under a pixel of the input."""
        return (
            max(0, round((x + 0.5 + self.left) * self.step_x - 0.5)),
            max(0, round((y + 0.5 + self.top) * self.step_y - 0.5)),
        )


def geometry(width: int, height: int, settings: InputSettings) -> Geometry:
    """The mapping from the input to an image of this size."""
    w, h, left, top = _plan(width, height, settings)
    return Geometry(width / w, height / h, left, top)


def _plan(width: int, height: int, settings: InputSettings) -> tuple[int, int, int, int]:
    size = settings.size
    if settings.fit == "squash":
        return size, size, 0, 0
    scale = settings.short_side / min(width, height)
    w, h = max(size, round(width * scale)), max(size, round(height * scale))
    return w, h, (w - size) // 2, (h - size) // 2


def _is_whole(picture: npt.NDArray[np.generic], w: int, h: int) -> bool:
    """Whether resizing all of a picture to w x h takes no more memory than is bounded anyway."""
    return w * h <= max(_WHOLE, int(picture.shape[0]) * int(picture.shape[1]))


def resize(picture: Picture, settings: InputSettings) -> Pixels:
    """The input of one image: (size, size) or (size, size, 3), of the same type and bit depth.

    Memory is bounded by the picture, whatever its aspect ratio.
    """
    w, h, left, top = _plan(picture.width, picture.height, settings)
    size, kernel = settings.size, _FILTERS[settings.filter]
    if _is_whole(picture.pixels, w, h):
        resized = _resample(picture.pixels, w, h, kernel)
        return resized[top : top + size, left : left + size]
    x, y = picture.width / w, picture.height / h
    right, low = min((left + size) * x, picture.width), min((top + size) * y, picture.height)
    return _resample(picture.pixels, size, size, kernel, (left * x, top * y, right, low))


def _resample(
    pixels: Pixels, w: int, h: int, kernel: Image.Resampling, box: _Box | None = None
) -> Pixels:
    """Resize the box, or all; pixels around the box take part as they do in the whole."""
    if box is None and pixels.shape[:2] == (h, w):
        return pixels
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize((w, h), kernel, box), dtype=np.uint8)
    if pixels.ndim == 3:
        planes = [_resample(pixels[..., c], w, h, kernel, box) for c in range(pixels.shape[2])]
        return np.stack(planes, axis=-1)  # type: ignore[return-value]  # stack widens the dtype
    # Pillow truncates resized 16-bit integers; planes of floats are rounded here instead.
    plane = np.asarray(Image.fromarray(pixels.astype(np.float32)).resize((w, h), kernel, box))
    return np.asarray(np.rint(plane).clip(0, 65535), dtype=np.uint16)


def binarise(pixels: Pixels) -> npt.NDArray[np.bool_]:
    """A mask (H, W): True where a pixel has at least half of the full scale.

    A mask without such a pixel holds class numbers: there, every pixel other than 0 is True.
    """
    grey = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    half = 128 if grey.dtype == np.uint8 else 32768
    return np.asarray(grey >= half if grey.max() >= half else grey > 0)


def resize_mask(pixels: Pixels, settings: InputSettings) -> npt.NDArray[np.bool_]:
    """A ground-truth mask in the geometry of the input: binarised, resized by nearest pixel."""
    grey = binarise(pixels)
    height, width = grey.shape
    w, h, left, top = _plan(width, height, settings)
    if not _is_whole(grey, w, h):
        columns = (2 * (left + np.arange(settings.size)) + 1) * width // (2 * w)
        rows = (2 * (top + np.arange(settings.size)) + 1) * height // (2 * h)
        return grey[np.ix_(rows, columns)]
    binary = Image.fromarray(grey.astype(np.uint8))
    resized = np.asarray(binary.resize((w, h), Image.Resampling.NEAREST)) > 0
    return resized[top : top + settings.size, left : left + settings.size]


def pack(pixels: Pixels) -> bytes:
    """The bytes of pixels, to send to another process: little-endian, row by row."""
    return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()


def unpack(data: bytes | npt.NDArray[np.uint8], channels: int, bit_depth: int, size: int) -> Pixels:
    """The inverse of `pack`: a new array (channels, size, size)."""
    values = np.frombuffer(data, "<u1" if bit_depth <= 8 else "<u2").copy()
    if channels == 1:
        return values.reshape(1, size, size)
    return np.ascontiguousarray(values.reshape(size, size, channels).transpose(2, 0, 1))
