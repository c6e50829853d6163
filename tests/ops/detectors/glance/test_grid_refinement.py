"""Grid refinement: all cells without a tolerance, few where the function is smooth with one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ops.detectors.glance.grid_refinement import refine


class Counted:
    """A function on a grid that remembers where it was computed."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.computed = values.flatten()[:, None], []

    def __call__(self, numbers: Tensor) -> Tensor:
        self.computed += numbers.tolist()
        return self.values[numbers]


def score(numbers: Tensor, values: Tensor) -> Tensor:
    return 2 * values[:, 0]


def plane(height: int, width: int) -> Tensor:
    return torch.arange(height)[:, None] / 7 + torch.arange(width)[None, :] / 3


@pytest.mark.parametrize("shape", [(17, 17), (13, 22), (1, 9), (5, 1), (2, 2)])
def test_without_a_tolerance_every_cell_is_computed_once(shape):
    counted = Counted(plane(*shape))
    values = refine(shape, 4, 0.0, counted, score)
    assert torch.equal(values, counted.values)
    assert sorted(counted.computed) == list(range(len(values)))


@pytest.mark.parametrize("shape", [(49, 49), (13, 22), (18, 5), (30, 4)])
def test_a_plane_is_interpolated_from_few_cells(shape):
    counted = Counted(plane(*shape))
    values = refine(shape, 9, 1e-4, counted, score)
    torch.testing.assert_close(values, counted.values, rtol=0, atol=1e-5)
    assert len(counted.computed) == len(set(counted.computed)) < shape[0] * shape[1] * 0.9
    if shape == (49, 49):
        assert len(counted.computed) == 17**2 + 2 * 17 * 2 + 4


def test_every_cell_of_a_bump_is_computed_and_few_elsewhere():
    y, x = torch.meshgrid(torch.arange(49.0), torch.arange(49.0), indexing="ij")
    bump = torch.exp(-((y - 24) ** 2 + (x - 17) ** 2) / 18)
    counted = Counted(bump)
    values = refine((49, 49), 9, 0.02, counted, score)
    assert float((values - counted.values).abs().max()) < 0.02
    near = [int(n) for n in torch.arange(49 * 49)[(bump > 0.6).flatten()]]
    assert set(near) <= set(counted.computed)
    assert len(counted.computed) == len(set(counted.computed)) < 49 * 49 / 2


def test_alternating_values_and_borders_are_not_refined():
    """The error is a mean over a rectangle, and outermost cells are computed separately."""
    plain = plane(49, 49)
    plain[:, ::2] += 1
    plain[0] += 10
    counted = Counted(plain)
    values = refine((49, 49), 9, 0.7, counted, score)
    assert len(counted.computed) < 49 * 49 / 4
    assert float((values - counted.values)[2 * 49 :].mean().abs()) < 0.1
