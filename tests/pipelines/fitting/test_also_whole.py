"""Tiles and the whole picture as one model: each sees what the other does not."""

import numpy as np
import pytest

from ops.images.resize import InputSettings
from ops.results.write_maps import DrawSketches
from ops.storage.paths import Out
from pipelines.scoring.stream import draw_step
from tests.ensembles import detecting, ensemble_of, member, rows_of

#: Components stand in rows of 48 pixels: tiles see plain board between them, squashed pictures
#: see no plain patch.
PITCH, SIDE = 48, 288
TILES = InputSettings(size=64, fit="tile", overlap=0.5)


def board(seed, missing=None):
    """A board of 6 x 6 round components; the one at row and column `missing` is absent."""
    random = np.random.default_rng(seed)
    pixels = random.normal(90, 4, (SIDE, SIDE))
    y, x = np.mgrid[:SIDE, :SIDE]
    for row, column in np.ndindex(6, 6):
        down, across = (np.array([row, column]) + 0.5) * PITCH + random.uniform(-2, 2, 2)
        if (row, column) != missing:
            pixels[(y - down) ** 2 + (x - across) ** 2 <= 12**2] += 100
    return pixels.clip(0, 255).astype(np.uint8)


def scratched(seed):
    """A board with a scratch of 2 x 10 pixels on a component."""
    pixels = board(seed)
    pixels[100:102, 100:110] = 0
    pixels[118:128:2, 118:126:2] = 0
    return pixels


@pytest.fixture(scope="module")
def members():
    return [member(TILES, draw=board), member(InputSettings(size=64), draw=board)]


@pytest.fixture(scope="module")
def together(members):
    return ensemble_of(members, "smallest_p", draw=board)


def scores(model, *drawn):
    return detecting(model)(rows_of(drawn, model.card.inputs)).to_pylist()


def test_each_sees_what_the_other_does_not_and_both_see_all(members, together):
    bad = [board(70, missing=(2, 3)), scratched(71)]
    lowest = pytest.approx(1 / 9)  # of 8 held-out boards
    tiles, whole, both = (
        [row["p_value"] for row in scores(model, *bad)] for model in (*members, together)
    )
    assert tiles[0] > 0.5
    assert tiles[1] == lowest
    assert whole[0] == lowest
    assert whole[1] > 0.5
    assert both == [lowest, lowest]


def test_a_row_holds_the_picture_once_and_its_map_shows_the_missing_component(together):
    assert together.card.input == TILES
    assert together.card.inputs == (TILES, InputSettings(size=64))
    rows = rows_of([board(70, missing=(2, 3)), board(72)], together.card.inputs)
    assert [len(row) for row in rows["pixels"].to_pylist()] == [SIDE * SIDE] * 2
    assert [len(row) for row in rows["further_pixels"].to_pylist()] == [64 * 64] * 2
    found = detecting(together, keep=True)(rows)
    assert "further_pixels" not in found.schema.names
    draw = draw_step(together, Out(""), "none", overlays=True, kind=DrawSketches)
    drawn = draw(found).to_pylist()
    x, y = (place + 0.5 for place in (3, 2))
    assert np.hypot(drawn[0]["peak_x"] - x * PITCH, drawn[0]["peak_y"] - y * PITCH) <= PITCH
    assert drawn[0]["map_largest"] > drawn[1]["map_largest"]


def test_many_small_pictures_are_scored_in_batches_to_the_same_bits(together):
    drawn = [board(seed) for seed in range(80, 97)]  # one more than a batch
    rows = scores(together, *drawn)
    assert [scores(together, drawn[n])[0]["score"] for n in (0, 16)] == [
        rows[n]["score"] for n in (0, 16)
    ]
