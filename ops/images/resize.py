"""Resizes images of any size to the input of a detector, and maps coordinates back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ops.errors import SettingError
from ops.images import tiles
from ops.images.decode import Picture, Pixels
from ops.images.tiles import Tiling

#: How the exposure of images is normalised, in `ops.images.exposure`.
Exposure = Literal["as_is", "median", "standard"]

#: Sizes that a fit replaces by numbers.
_CHOSEN_LATER = {"auto", "network"}
_Box = tuple[float, float, float, float]
#: A picture is resized as a whole up to so many pixels, and otherwise where the input keeps it: the
#: shorter side of a strip may have to grow by a large factor.
_WHOLE = 2**23
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class InputSettings:
    """The input of a detector."""

    size: int | str = 224
    """Side of the square input in pixels, or its width and height, such as 320x224. Of a fit also:
    `network`, the size of the backbone's configuration (224 for torchvision), and `auto`, the
    default, which chooses from the pictures and never below that size; see docs/fitting.md."""
    fit: Literal["auto", "squash", "crop", "tile"] = "squash"
    """`squash` resizes the whole image and ignores its aspect ratio; `crop` resizes the shorter
    side to `short_side` and cuts out the centre, as in most papers; `tile` cuts the image into
    squares that overlap, for defects that are small in a large picture. For a fit the default is
    `auto`: `squash`, or with size auto `tile` where pictures are large."""
    short_side: int = 256
    """With `crop`: length of the shorter side, in pixels, before the centre is cut out."""
    filter: Literal["bilinear", "lanczos"] = "bilinear"
    """Resampling filter, with antialiasing."""
    exposure: Exposure = "as_is"
    """Normalises the brightness of each image: `median` scales it to a fixed median, `standard` to
    a fixed mean and standard deviation, `as_is` keeps it. With the first two, an image that is too
    dark or too bright as a whole is not an anomaly."""
    scale: float = 1.0
    """With `tile`: factor by which the picture is resized before it is cut, above 0 and at most 1;
    1 = its own resolution."""
    overlap: float = 0.25
    """With `tile`: share of its side, at least, that a tile shares with the next; at most 0.75."""
    map_pixels: int = 2**22
    """With `tile`: largest number of pixels of an anomaly map. Maps of larger pictures have a lower
    resolution."""

    def __post_init__(self) -> None:
        """Raise SettingError for values out of range."""
        if self.fit not in {"auto", "squash", "crop", "tile"}:
            raise SettingError(f"input.fit {self.fit!r} must be auto, squash, crop or tile")
        size = size_of(self.size)
        object.__setattr__(self, "size", size)  # equal inputs are written equally
        if self.fit != "tile":
            return
        if isinstance(size, str) and size not in _CHOSEN_LATER:
            raise SettingError(
                f"input.size {size} must be one number with input.fit tile: tiles are squares"
            )
        if isinstance(size, int) and size < 32:
            raise SettingError(f"input.size {size} must be at least 32 with input.fit tile")
        if not 0 < self.scale <= 1:
            raise SettingError(f"input.scale {self.scale} must lie in (0, 1]; 1 = native")
        if not 0 <= self.overlap <= 0.75:
            raise SettingError(f"input.overlap {self.overlap} must lie in [0, 0.75]")
        if self.map_pixels < 1:
            raise SettingError(f"input.map_pixels {self.map_pixels} must be at least 1")

    @property
    def is_open(self) -> bool:
        """Whether a fit has yet to choose; only then may `sides` not be asked for."""
        return self.fit == "auto" or self.size in _CHOSEN_LATER

    @property
    def tiled(self) -> bool:
        """Whether pictures are cut into tiles."""
        return self.fit == "tile"

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height of the input in pixels; of a tile, with `tile`."""
        if isinstance(self.size, int):
            return self.size, self.size
        width, height = self.size.split("x")
        return int(width), int(height)


def size_of(given: int | str) -> int | str:
    """A size as it is written in a model: a number for squares, otherwise WIDTHxHEIGHT.

    Raises SettingError.
    """
    if given in _CHOSEN_LATER:
        return given
    words = str(given).lower().split("x")
    if not 1 <= len(words) <= 2 or not all(w.strip().isdecimal() and w.isascii() for w in words):
        raise SettingError(
            f"input.size {given!r} must be a number of pixels, or width x height, such as 320x224; "
            "or, for a fit, auto or network"
        )
    width, height = int(words[0]), int(words[-1])
    if not (width and height):
        raise SettingError(f"input.size {given!r} must have sides of at least 1 pixel")
    return width if width == height else f"{width}x{height}"


class Geometry(NamedTuple):
    """x_image = (x_map + 0.5 + left) * step_x - 0.5, and the same for y with top and step_y.

    A map has the pixels of the input; with `tile`, those of the scaled picture or fewer.
    """

    step_x: float
    step_y: float
    left: float
    top: float

    def to_picture(self, x: float, y: float) -> tuple[int, int]:
        """The pixel of the image under a pixel of the map."""
        return (
            max(0, round((x + 0.5 + self.left) * self.step_x - 0.5)),
            max(0, round((y + 0.5 + self.top) * self.step_y - 0.5)),
        )


def geometry(width: int, height: int, settings: InputSettings) -> Geometry:
    """The mapping from the map of an image of this size to the image."""
    w, h, left, top = _plan(width, height, settings)
    return Geometry(width / w, height / h, left, top)


def map_size(width: int, height: int, settings: InputSettings) -> tuple[int, int]:
    """Width and height of the anomaly map of an image of this size."""
    if settings.tiled:
        return _plan(width, height, settings)[:2]
    return settings.sides


def tiling(width: int, height: int, settings: InputSettings) -> Tiling:
    """The tiles of an image of this size, with `tile`."""
    side, _ = settings.sides
    scaled = tiles.scaled_size(width, height, settings.scale)
    return tiles.tiling(*scaled, side, settings.overlap)


def _plan(width: int, height: int, settings: InputSettings) -> tuple[int, int, int, int]:
    """The size of the resized image, and the corner of the part that the map shows of it."""
    across, down = settings.sides
    if settings.fit == "squash":
        return across, down, 0, 0
    if settings.tiled:
        scaled = tiles.scaled_size(width, height, settings.scale)
        return *tiles.map_size(*scaled, settings.map_pixels), 0, 0
    scale = settings.short_side / min(width, height)
    w, h = max(across, round(width * scale)), max(down, round(height * scale))
    return w, h, (w - across) // 2, (h - down) // 2


def _is_whole(picture: npt.NDArray[np.generic], w: int, h: int) -> bool:
    """Whether resizing all of a picture to w x h takes no more memory than is bounded anyway."""
    return w * h <= max(_WHOLE, int(picture.shape[0]) * int(picture.shape[1]))


def resize(picture: Picture, settings: InputSettings) -> Pixels:
    """The input of one image: (height, width) or (height, width, 3), of the same type and depth.

    With `tile` it is the whole scaled picture (height, width) or (height, width, 3), from which
    tiles are cut later. Memory is bounded by the picture, whatever its aspect ratio.
    """
    if settings.tiled:
        return shrunk(
            picture.pixels,
            tiles.scaled_size(picture.width, picture.height, settings.scale),
            settings,
        )
    w, h, left, top = _plan(picture.width, picture.height, settings)
    (across, down), kernel = settings.sides, _FILTERS[settings.filter]
    if _is_whole(picture.pixels, w, h):
        resized = _resample(picture.pixels, w, h, kernel)
        return resized[top : top + down, left : left + across]
    x, y = picture.width / w, picture.height / h
    right, low = min((left + across) * x, picture.width), min((top + down) * y, picture.height)
    return _resample(picture.pixels, across, down, kernel, (left * x, top * y, right, low))


def shrunk(pixels: Pixels, size: tuple[int, int], settings: InputSettings) -> Pixels:
    """Pixels (H, W) or (H, W, 3), resized as a whole to a smaller width and height."""
    return _resample(pixels, *size, _FILTERS[settings.filter])


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
    """A ground-truth mask in the geometry of the map: binarised, resized by nearest pixel."""
    grey = binarise(pixels)
    height, width = grey.shape
    w, h, left, top = _plan(width, height, settings)
    across, down = map_size(width, height, settings)
    if not _is_whole(grey, w, h):
        return nearest(grey, (w, h), (left, top), (across, down))
    binary = Image.fromarray(grey.astype(np.uint8))
    resized = np.asarray(binary.resize((w, h), Image.Resampling.NEAREST)) > 0
    return resized[top : top + down, left : left + across]


def nearest(
    values: npt.NDArray[np.bool_],
    whole: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> npt.NDArray[np.bool_]:
    """A part of `values` (H, W), resized by nearest pixel; memory for the part (h, w) alone.

    `whole` is the width and height that all of them are resized to, `corner` the left column and
    top row of the part there, and `size` its width and height.
    """
    height, width = values.shape
    columns = (2 * (corner[0] + np.arange(size[0])) + 1) * width // (2 * whole[0])
    rows = (2 * (corner[1] + np.arange(size[1])) + 1) * height // (2 * whole[1])
    return values[np.ix_(rows, columns)]


def on_map(
    values: npt.NDArray[np.bool_], width: int, height: int, settings: InputSettings
) -> npt.NDArray[np.bool_]:
    """Of values (H, W) for all of a picture, those at the pixels of its map, by nearest pixel.

    `width` and `height` are those of the picture, of which `values` may have fewer or more.
    """
    w, h, left, top = _plan(width, height, settings)
    return nearest(values, (w, h), (left, top), map_size(width, height, settings))


def pack(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """The bytes (n,) of pixels, to send to another process: little-endian, row by row.

    They share the pixels' memory where that already has this order.
    """
    ordered = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8)


def packed_bytes(settings: InputSettings, channels: int, bit_depth: int) -> int:
    """Bytes of a packed input that is no whole picture."""
    return math.prod(settings.sides) * channels * (1 if bit_depth <= 8 else 2)


def unpack(
    data: bytes | npt.NDArray[np.uint8], channels: int, bit_depth: int, size: tuple[int, int]
) -> Pixels:
    """The inverse of `pack`: a view (height, width, channels); `size` is width and height."""
    values = np.frombuffer(data, "<u1" if bit_depth <= 8 else "<u2")
    return values.reshape(size[1], size[0], channels)
