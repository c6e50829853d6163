"""Where the patches of an input lie on its picture: from a patch to pixels, and back.

An input, or a tile, has a grid of patches (rows, columns), each of which stands for a cell of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ops.images.resize import InputSettings, geometry, tiling
from ops.images.tiles import Tiling


class Box(NamedTuple):
    """A rectangle of a picture in pixels; `right` and `bottom` are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int


class PatchGrid(NamedTuple):
    """The grid of patches of a picture's input; of each tile, with `tile`."""

    width: int
    """That of the picture."""
    height: int
    settings: InputSettings
    shape: tuple[int, int]
    """Rows and columns."""

    def box(self, position: int, tile: int = 0) -> Box:
        """The cell of a patch, as far as it lies within the picture; at least a pixel."""
        row, column = divmod(position, self.shape[1])
        (left, top), (step_x, step_y), (side_x, side_y) = self._frame(tile)
        across = _span(column, side_x / self.shape[1], left, step_x, self.width)
        down = _span(row, side_y / self.shape[0], top, step_y, self.height)
        return Box(across[0], down[0], across[1], down[1])

    def at(self, x: int, y: int) -> tuple[int, int]:
        """The patch whose cell holds a pixel, as position and tile.

        Of several tiles it is the one whose centre is nearest, which counts most in maps.
        """
        tile = 0
        if self.settings.tiled:
            tiles = self._tiling
            across = _nearest(tiles.lefts, tiles.covered[0], (x + 0.5) * tiles.width / self.width)
            down = _nearest(tiles.tops, tiles.covered[1], (y + 0.5) * tiles.height / self.height)
            tile = down * len(tiles.lefts) + across
        (left, top), (step_x, step_y), (side_x, side_y) = self._frame(tile)
        rows, columns = self.shape
        column = math.floor(((x + 0.5) / step_x - left) * columns / side_x)
        row = math.floor(((y + 0.5) / step_y - top) * rows / side_y)
        row, column = min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)
        return row * columns + column, tile

    @property
    def _tiling(self) -> Tiling:
        return tiling(self.width, self.height, self.settings)

    def _frame(self, tile: int) -> tuple[tuple[int, int], tuple[float, float], tuple[int, int]]:
        """Corner of the input on the resized picture, pixels of the picture per pixel of it, and
        its sides.
        """
        if self.settings.tiled:
            tiles = self._tiling
            steps = self.width / tiles.width, self.height / tiles.height
            return tiles.corner(tile), steps, (tiles.size, tiles.size)
        place = geometry(self.width, self.height, self.settings)
        corner = int(place.left), int(place.top)
        return corner, (place.step_x, place.step_y), self.settings.sides


def _span(cell: int, size: float, start: int, step: float, length: int) -> tuple[int, int]:
    """First pixel of a cell along an axis of the picture, and the first one after it."""
    # Rounded first, because products of floats may lie just beside a whole pixel.
    first = math.floor(round((start + cell * size) * step, 6))
    last = math.ceil(round((start + (cell + 1) * size) * step, 6))
    first = min(max(first, 0), length - 1)
    return first, max(first + 1, min(last, length))


def _nearest(starts: tuple[int, ...], covered: int, at: float) -> int:
    """The number of the tile along an axis whose centre is nearest to a place."""
    return min(range(len(starts)), key=lambda n: abs(starts[n] + covered / 2 - at))
