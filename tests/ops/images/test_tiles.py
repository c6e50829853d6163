"""The geometry of tiles: they cover the picture, end flush with it, and map back exactly."""

import numpy as np
import pytest

from ops.images import tiles
from ops.images.tiles import Tiling, cut, map_size, reflected, scaled_size, starts, tile_id, tiling

SIZES = [(1, 1), (3, 500), (63, 65), (64, 64), (65, 64), (64, 200), (331, 97), (1000, 30)]


def numbered(width: int, height: int) -> np.ndarray:
    """A picture whose every pixel has its own value."""
    return np.arange(width * height, dtype=np.int64).reshape(height, width)


def test_starts_step_by_multiples_of_the_stride_and_end_flush():
    assert starts(224, 224, 0.25) == (0,)
    assert starts(10, 224, 0.25) == (0,)
    assert starts(225, 224, 0.25) == (0, 1)
    assert starts(384, 224, 0.25) == (0, 160)  # 168 pixels, rounded down
    assert starts(600, 224, 0.25) == (0, 160, 320, 376)
    assert starts(448, 224, 0.0) == (0, 224)
    assert starts(40, 16, 0.25) == (0, 12, 24)  # too small a tile for a multiple of the stride
    assert starts(20, 1, 0.9) == tuple(range(20))


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("size", [16, 64, 100, 224])
def test_neighbours_overlap_at_least_as_asked_and_none_is_superfluous(size, overlap):
    for length in (size + 1, 2 * size, 3 * size + 17, 1000):
        firsts = np.array(starts(length, size, overlap))
        steps = np.diff(firsts)
        assert (steps >= 1).all()
        assert (size - steps >= np.ceil(overlap * size)).all()
        assert firsts[-1] + size == max(length, size)
        assert len(set(steps[:-1])) <= 1  # all but the last are equal


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_tiles_hold_every_pixel_at_its_place_and_nothing_else(shape, overlap):
    picture = numbered(*shape)
    grid = tiling(*shape, 64, overlap)
    found = np.full(picture.shape, -1)
    for number in range(grid.total):
        left, top = grid.corner(number)
        tile = cut(picture, grid, number)
        assert tile.shape == (64, 64)
        width, height = grid.covered
        shown = tile[:height, :width]
        assert np.array_equal(shown, picture[top : top + height, left : left + width])
        assert np.array_equal(tile[grid.inside()], shown.ravel())
        found[top : top + height, left : left + width] = shown
    assert np.array_equal(found, picture)


def test_tiles_are_numbered_row_by_row():
    grid = tiling(150, 100, 64, 0.0)
    assert (grid.lefts, grid.tops, grid.total) == ((0, 64, 86), (0, 36), 6)
    assert [grid.corner(n) for n in range(6)] == [
        (0, 0), (64, 0), (86, 0), (0, 36), (64, 36), (86, 36),
    ]  # fmt: skip


def test_padding_mirrors_the_picture():
    assert reflected(4, 9).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert reflected(1, 3).tolist() == [0, 0, 0]
    assert reflected(2, 5).tolist() == [0, 1, 0, 1, 0]
    picture = numbered(3, 5)[..., None] * np.array([1, 2, 3])
    grid = tiling(3, 5, 8, 0.25)
    tile = cut(picture, grid, 0)
    assert np.array_equal(tile, np.pad(picture, ((0, 3), (0, 5), (0, 0)), mode="reflect"))
    assert grid.is_padded
    assert grid.inside().sum() == 15


def test_an_axis_longer_than_the_tile_is_cut_while_the_other_is_padded():
    picture = numbered(100, 3)
    grid = tiling(100, 3, 64, 0.0)
    assert (grid.lefts, grid.tops) == ((0, 36), (0,))
    assert np.array_equal(cut(picture, grid, 1)[:3], picture[:, 36:])
    assert np.array_equal(cut(picture, grid, 1)[3], picture[1, 36:])


def test_a_tile_without_padding_is_a_view():
    picture = numbered(200, 100)
    assert np.shares_memory(cut(picture, tiling(200, 100, 64, 0.25), 1), picture)


def test_scaled_pictures_have_a_pixel_at_least():
    assert scaled_size(4000, 3000, 0.5) == (2000, 1500)
    assert scaled_size(3, 4000, 0.1) == (1, 400)
    assert scaled_size(101, 33, 1.0) == (101, 33)


@pytest.mark.parametrize(
    ("shape", "most", "expected"),
    [
        ((300, 200), 60_000, (300, 200)),
        ((600, 400), 60_000, (300, 200)),
        ((11_000, 9_000), 2**22, (2264, 1852)),
        ((2**27, 1), 2**22, (2**22, 1)),
        ((1, 2**27), 100, (1, 100)),
        ((1000, 2), 100, (100, 1)),
    ],
)
def test_maps_keep_the_proportions_and_never_have_more_pixels(shape, most, expected):
    assert map_size(*shape, most) == expected
    assert expected[0] * expected[1] <= most


def test_every_tile_of_every_picture_has_an_id_of_its_own():
    places = [(row, number) for row in (0, 1, 2**24) for number in (0, 1, 2**22 - 1)]
    ids = {tile_id(*place) for place in places}
    assert [tiles.of_tile_id(tile_id(*place)) for place in places] == places
    assert len(ids) == 9
    assert tile_id(5, 0) == 5 << tiles.TILE_BITS
    assert tile_id(2**24, 2**22 - 1) * 2**16 < 2**63  # patches of a tile fit behind it


def test_a_tiling_is_plain_numbers():
    assert tiling(64, 64, 64, 0.25) == Tiling(64, 64, 64, (0,), (0,))
    assert not tiling(64, 64, 64, 0.25).is_padded
