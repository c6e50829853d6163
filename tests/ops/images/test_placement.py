"""The placement of drawn parts is found again; textures have none."""

import numpy as np
import pytest

from ops.images import synthetic_parts
from ops.images.placement import FEWEST, SIDE, Placement, placement
from tests import pictures

COUNT = 16


def spread(values: np.ndarray) -> float:
    """The distance from the median that nine of ten keep."""
    return float(np.quantile(np.abs(values - np.median(values, axis=0)), 0.9))


def drawn(**places: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            pictures.bracket(seed, **{name: each[seed] for name, each in places.items()})
            for seed in range(len(next(iter(places.values()))))
        ]
    )


def test_aligned_parts_lie_in_one_place():
    assert placement(drawn(dx=np.zeros(COUNT))) == Placement(0.0, 0.0)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_shifts_are_found_in_noise(noise):
    shifts = np.random.default_rng(0).uniform(-0.1, 0.1, (COUNT, 2))
    found = placement(drawn(dx=shifts[:, 0], dy=shifts[:, 1], noise=np.full(COUNT, noise)))
    largest = np.abs(shifts - np.median(shifts, axis=0)).max(axis=1)
    assert found.shift == pytest.approx(np.quantile(largest, 0.9), abs=1.5 / SIDE)
    assert found.shift > 0.09
    assert found.turn == 0


@pytest.mark.parametrize("most", [5, 15, 45])
def test_turns_are_found_and_are_no_shifts(most):
    degrees = np.random.default_rng(most).uniform(-most, most, COUNT)
    found = placement(drawn(degrees=degrees))
    assert found.turn == pytest.approx(spread(degrees), abs=1.5)
    assert found.shift <= 1 / SIDE


def test_parts_may_be_shifted_and_turned():
    random = np.random.default_rng(1)
    dx, degrees = random.uniform(-0.1, 0.1, COUNT), random.uniform(-15, 15, COUNT)
    found = placement(drawn(dx=dx, degrees=degrees))
    assert found.turn == pytest.approx(spread(degrees), abs=1.5)
    assert found.shift == pytest.approx(spread(dx), abs=0.015)


def test_a_round_part_has_no_turn():
    washers = [synthetic_parts.draw("washer", seed, SIDE).picture[..., 0] for seed in range(COUNT)]
    found = placement(np.stack(washers))
    assert found.turn == 0
    assert found.shift < 0.03  # its centre varies by 0.01


def test_textures_have_no_placement():
    random = np.random.default_rng(2)
    fabrics = [synthetic_parts.draw("fabric", seed, SIDE).picture[..., 0] for seed in range(COUNT)]
    stripes = [pictures.texture(seed, SIDE) for seed in range(COUNT)]
    noise = random.integers(0, 256, (COUNT, SIDE, SIDE), np.uint8)
    for texture in (fabrics, stripes, noise, np.zeros_like(noise)):
        assert placement(np.stack(texture)) is None


def test_few_parts_have_no_placement():
    shifts = np.linspace(-0.1, 0.1, FEWEST)
    assert placement(drawn(dx=shifts)).shift == pytest.approx(0.1, abs=0.03)
    assert placement(drawn(dx=shifts[1:])) is None
