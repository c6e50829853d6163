"""Patches and pixels: a cell lies where the patch's values came from, and its pixels lead back."""

import numpy as np
import pytest

from ops.images.decode import Picture
from ops.images.patch_grid import Box, PatchGrid
from ops.images.resize import InputSettings, resize, tiling
from ops.images.tiles import cut

SQUASH = InputSettings(size=32)
WIDE = InputSettings(size="64x32")
CROP = InputSettings(size=32, fit="crop", short_side=40)
TILE = InputSettings(size=64, fit="tile", overlap=0.25)
HALF = InputSettings(size=64, fit="tile", scale=0.5)
EVERY = pytest.mark.parametrize("settings", [SQUASH, WIDE, CROP, TILE, HALF])
SIZES = [(100, 60), (64, 64), (300, 200), (500, 71), (20, 30), (1, 1)]


def grids(settings, size):
    shape = (4, 8) if settings is WIDE else (8, 8)
    total = tiling(*size, settings).total if settings.tiled else 1
    return PatchGrid(*size, settings, shape), total


@EVERY
@pytest.mark.parametrize("size", SIZES)
def test_the_cell_of_a_pixels_patch_holds_the_pixel(settings, size):
    grid, total = grids(settings, size)
    random = np.random.default_rng(0)
    if settings.fit == "crop":  # the input shows a part of the picture
        first, last = (grid.box(place) for place in (0, 63))
        seen = [(first.left, last.right), (first.top, last.bottom)]
    else:
        seen = [(0, length) for length in size]
    for x, y in zip(*(random.integers(*ends, 60).tolist() for ends in seen), strict=True):
        position, tile = grid.at(x, y)
        assert 0 <= tile < total
        box = grid.box(position, tile)
        assert 0 <= box.left < box.right <= size[0]
        assert 0 <= box.top < box.bottom <= size[1]
        assert box.left <= x < box.right
        assert box.top <= y < box.bottom


@EVERY
def test_a_cell_lies_where_the_pixels_of_its_patch_came_from(settings):
    """The input of a ramp has, on average over a cell, the x or y of the cell's centre."""
    width, height = 300, 200
    y, x = np.mgrid[:height, :width]
    inputs = [resize(Picture((100 * v).astype(np.uint16), 16), settings) for v in (x, y)]
    grid, total = grids(settings, (width, height))
    rows, columns = grid.shape
    for tile in range(total):
        if settings.tiled:
            shown = [cut(v, tiling(width, height, settings), tile) for v in inputs]
        else:
            shown = inputs
        for position in (9, 13, 18, rows * columns - 10):
            box = grid.box(position, tile)
            row, column = divmod(position, columns)
            high, wide = (n // m for n, m in zip(shown[0].shape, grid.shape, strict=True))
            cell = np.s_[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            centre = (box.left + box.right - 1) / 2, (box.top + box.bottom - 1) / 2
            found = [float(v[cell].mean()) / 100 for v in shown]
            assert found == pytest.approx(centre, abs=0.6)


def test_cells_by_number():
    squash, _ = grids(SQUASH, (64, 32))
    assert squash.box(0) == Box(0, 0, 8, 4)
    assert squash.box(63) == Box(56, 28, 64, 32)
    tile, _ = grids(TILE, (160, 64))  # tiles start at 0, 32, 64 and 96
    assert tile.box(9, tile=3) == Box(104, 8, 112, 16)
    assert tile.at(100, 9) == (12, 2)
