"""The geometry of tiles: where they lie on a scaled picture, and how pixels map back to it.

A tile is a square of `size` pixels. Tiles of one picture form a grid: every row of tiles has the
same columns. All functions are about numbers and arrays alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

A = TypeVar("A", bound=npt.NDArray[Any])
#: Backbones reduce by powers of two up to this one. Steps that are multiples of it make the patches
#: of neighbouring tiles coincide.
_STRIDE = 32
#: A picture has at most 2 ** TILE_BITS tiles, so that a tile's id follows from image and tile.
TILE_BITS = 22


class Tiling(NamedTuple):
    """The tiles of a picture of `width` x `height` pixels after scaling, row by row."""

    width: int
    height: int
    size: int
    lefts: tuple[int, ...]
    """The first column of pixels of each column of tiles."""
    tops: tuple[int, ...]
    """The first row of pixels of each row of tiles."""

    @property
    def total(self) -> int:
        """Number of tiles."""
        return len(self.lefts) * len(self.tops)

    def corner(self, number: int) -> tuple[int, int]:
        """The left column and top row of a tile."""
        row, column = divmod(number, len(self.lefts))
        return self.lefts[column], self.tops[row]

    @property
    def covered(self) -> tuple[int, int]:
        """Width and height of the part of each tile that shows the picture; the rest is padding."""
        return min(self.width, self.size), min(self.height, self.size)

    @property
    def is_padded(self) -> bool:
        """Whether the picture is smaller than a tile, in one direction at least."""
        return self.covered != (self.size, self.size)

    def inside(self) -> npt.NDArray[np.bool_]:
        """Mask (size, size) of the pixels of each tile that show the picture."""
        width, height = self.covered
        mask = np.zeros((self.size, self.size), bool)
        mask[:height, :width] = True
        return mask


def scaled_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """Width and height of a scaled picture; at least 1."""
    return max(1, round(width * scale)), max(1, round(height * scale))


def starts(length: int, size: int, overlap: float) -> tuple[int, ...]:
    """First pixels of the tiles along one axis, ascending; the last tile is flush with the border.

    Neighbours share at least the part `overlap` of a tile. An axis shorter than a tile has one.
    """
    if length <= size:
        return (0,)
    step = max(1, math.floor(size * (1 - overlap)))
    step -= step % _STRIDE if step > _STRIDE else 0
    last = length - size
    return (*range(0, last, step), last)


def tiling(width: int, height: int, size: int, overlap: float) -> Tiling:
    """The tiles of a scaled picture."""
    lefts, tops = (starts(length, size, overlap) for length in (width, height))
    return Tiling(width, height, size, lefts, tops)


def cut(pixels: A, tiles: Tiling, number: int) -> A:
    """The pixels (size, size, ...) of a tile of a scaled picture (height, width, ...).

    Padding repeats the picture as mirrors would; without padding the result is a view.
    """
    left, top = tiles.corner(number)
    if not tiles.is_padded:
        return cast(A, pixels[top : top + tiles.size, left : left + tiles.size])
    rows, columns = (
        start + reflected(min(length, tiles.size), tiles.size)
        for start, length in ((top, tiles.height), (left, tiles.width))
    )
    return cast(A, pixels[rows[:, None], columns])


def reflected(length: int, size: int) -> npt.NDArray[np.intp]:
    """Indices (size,) that run through `length` pixels forwards and backwards in turn.

    The border's own pixel is not repeated.
    """
    period = max(1, 2 * length - 2)
    at = np.arange(size) % period
    return np.where(at < length, at, period - at)


def map_size(width: int, height: int, most: int) -> tuple[int, int]:
    """Width and height of the map of a scaled picture: of its size, or smaller in proportion.

    The map has at most `most` pixels, and at least 1 in each direction.
    """
    if width * height <= most:
        return width, height
    factor = math.sqrt(most / (width * height))
    columns, rows = (max(1, math.floor(length * factor)) for length in (width, height))
    columns = min(columns, max(1, most // rows))
    return columns, min(rows, most // columns)


def tile_id(row: int, number: int) -> int:
    """A number that follows from a picture's number and a tile's, and that no other tile has."""
    return row << TILE_BITS | number


def of_tile_id(tile: int) -> tuple[int, int]:
    """The picture's number and the tile's, of which `tile_id` made this one."""
    return tile >> TILE_BITS, tile & (1 << TILE_BITS) - 1
