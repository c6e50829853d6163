"""Maps of tiles blended into one: agreement is kept, nothing jumps, padding plays no part."""

import numpy as np
import pytest

from ops.images.tiles import Tiling, tiling
from ops.results.mosaic import Mosaic

SIZES = [(64, 64), (200, 64), (331, 97), (97, 331), (1000, 500), (20, 40), (3, 300)]
FULL = (10_000, 10_000)


def centres(tiles: Tiling, number: int, patches: int) -> tuple[np.ndarray, np.ndarray]:
    """X (1, patches) and y (patches, 1) of a tile's patches, in pixels of the scaled picture."""
    left, top = tiles.corner(number)
    at = (np.arange(patches) + 0.5) * tiles.size / patches
    return (left + at)[None], (top + at)[:, None]


def blended(tiles: Tiling, patches: int, field, size=FULL) -> np.ndarray:
    """The mosaic of a field of values at the patches' centres; padding is not a number at all."""
    mosaic = Mosaic(tiles, (patches, patches), size)
    for number in reversed(range(tiles.total)):
        x, y = centres(tiles, number, patches)
        values = np.broadcast_to(field(x, y), (patches, patches)).astype(np.float32)
        side = tiles.size / patches
        hidden = (x - side / 2 >= tiles.width) | (y - side / 2 >= tiles.height)
        mosaic.add(number, np.where(hidden, np.float32(1e9), values))
    return mosaic.values


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_where_all_tiles_agree_the_mosaic_has_their_value(size, overlap):
    tiles = tiling(*size, 64, overlap)
    found = blended(tiles, 8, lambda x, y: x * 0 + y * 0 + 3.25)
    assert found.shape == tuple(max(1, round(length / 8)) for length in size[::-1])
    assert np.abs(found - 3.25).max() < 1e-5


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_patches_of_aligned_tiles_are_kept_as_they_are(overlap):
    values = np.random.default_rng(0).random((40, 40)).astype(np.float32)
    tiles = tiling(320, 320, 64, overlap)
    found = blended(tiles, 8, lambda x, y: values[y.astype(int) // 8, x.astype(int) // 8])
    assert np.abs(found - values).max() < 1e-6


def test_a_plane_is_kept_between_the_outermost_centres_of_tiles():
    tiles = tiling(331, 203, 64, 0.5)
    found = blended(tiles, 8, lambda x, y: 2 * x - y)
    rows, columns = found.shape
    x = (np.arange(columns) + 0.5) * 331 / columns
    y = (np.arange(rows) + 0.5) * 203 / rows
    off = np.abs(found - (2 * x[None] - y[:, None]))
    # Beyond the centre of a tile's last patch its value is taken, which is up to half a patch off.
    assert off.max() <= 0.5 * 8 * 3
    assert off[1:-1, 1:-1].max() < 1.0


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75])
def test_values_change_linearly_from_one_tile_to_the_next(overlap):
    tiles = tiling(224 + 160, 224, 224, 0.25) if overlap == 0.25 else tiling(500, 224, 224, overlap)
    mosaic = Mosaic(tiles, (28, 28), FULL)
    for number in range(tiles.total):
        mosaic.add(number, np.full((28, 28), number % 2, np.float32))
    line = mosaic.values[14]
    shared = 224 - max(np.diff(tiles.lefts))
    assert np.abs(np.diff(line)).max() <= 8 / min(shared, 224 - shared) * 2.01
    assert np.array_equal(mosaic.values, np.broadcast_to(line, mosaic.values.shape))
    if overlap == 0.25:
        assert np.abs(np.diff(line)).max() == pytest.approx(8 / 64, abs=1e-5)  # 64 pixels overlap


def test_a_peak_stays_where_it_is_across_all_borders():
    tiles = tiling(300, 260, 64, 0.25)
    for x in range(4, 300, 13):
        for y in range(4, 260, 37):

            def spot(at_x, at_y, x=x, y=y):
                return np.exp(-((at_x - x) ** 2 + (at_y - y) ** 2) / 200)

            found = blended(tiles, 8, spot)
            rows, columns = found.shape
            row, column = np.unravel_index(found.argmax(), found.shape)
            assert abs((column + 0.5) * 300 / columns - x) <= 5.5
            assert abs((row + 0.5) * 260 / rows - y) <= 5.5
            assert 0.8 < found.max() <= 1.0001


def test_a_coarse_mosaic_has_the_pixels_of_the_map_and_averages():
    values = np.random.default_rng(0).random((128, 128))
    tiles = tiling(128, 128, 64, 0.5)
    fine = blended(tiles, 64, lambda x, y: values[y.astype(int), x.astype(int)])
    assert np.abs(fine - values).max() < 1e-6
    coarse = blended(tiles, 64, lambda x, y: values[y.astype(int), x.astype(int)], (32, 32))
    assert coarse.shape == (32, 32)
    means = values.reshape(32, 4, 32, 4).mean(axis=(1, 3))
    assert np.corrcoef(coarse.ravel(), means.ravel())[0, 1] > 0.85
    assert coarse.mean() == pytest.approx(values.mean(), abs=0.02)


def test_the_order_of_tiles_plays_no_part_but_for_rounding():
    tiles = tiling(200, 200, 64, 0.5)
    maps = np.random.default_rng(0).random((tiles.total, 8, 8)).astype(np.float32)
    one, other = Mosaic(tiles, (8, 8), FULL), Mosaic(tiles, (8, 8), FULL)
    for number in range(tiles.total):
        one.add(number, maps[number])
        other.add(tiles.total - 1 - number, maps[tiles.total - 1 - number])
    assert np.abs(one.values - other.values).max() < 1e-6


def test_tiles_that_are_missing_take_the_values_of_the_nearest():
    tiles = tiling(200, 200, 64, 0.5)
    whole, part = Mosaic(tiles, (8, 8), FULL), Mosaic(tiles, (8, 8), FULL, partial=True)
    scores = np.tile(np.arange(1, 9, dtype=np.float32)[:, None], (1, 8))
    for number in range(tiles.total):
        whole.add(number, scores)
        if tiles.corner(number)[0] < 100:
            part.add(number, scores)
    part.fill()
    last = max(left for left in tiles.lefts if left < 100) + 64
    known = (np.arange(part.values.shape[1]) + 0.5) * 200 / part.values.shape[1] < last
    assert not known.all()
    # Columns of a row have one value, whichever tiles they are averaged of.
    assert np.allclose(part.values[:, known], whole.values[:, known], rtol=1e-5)
    assert np.allclose(part.values, part.values[:, :1], rtol=1e-5)
