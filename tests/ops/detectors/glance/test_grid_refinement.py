"""Coarse to fine: everything without a tolerance, and little where little happens with one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ops.detectors.glance.grid_refinement import refined


class Counted:
    """A function on a grid that remembers where it was computed."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.asked = values.flatten()[:, None], []

    def __call__(self, numbers: Tensor) -> Tensor:
        self.asked += numbers.tolist()
        return self.values[numbers]


def judge(numbers: Tensor, values: Tensor) -> Tensor:
    return 2 * values[:, 0]


def plane(height: int, width: int) -> Tensor:
    return torch.arange(height)[:, None] / 7 + torch.arange(width)[None, :] / 3


@pytest.mark.parametrize("shape", [(17, 17), (13, 22), (1, 9), (5, 1), (2, 2)])
def test_without_a_tolerance_every_cell_is_computed_once(shape):
    counted = Counted(plane(*shape))
    found = refined(shape, 4, 0.0, counted, judge)
    assert torch.equal(found, counted.values)
    assert sorted(counted.asked) == list(range(len(found)))


@pytest.mark.parametrize("shape", [(49, 49), (13, 22), (18, 5), (30, 4)])
def test_a_plane_is_foretold_from_few_cells(shape):
    counted = Counted(plane(*shape))
    found = refined(shape, 9, 1e-4, counted, judge)
    torch.testing.assert_close(found, counted.values, rtol=0, atol=1e-5)
    assert len(counted.asked) == len(set(counted.asked)) < shape[0] * shape[1] * 0.9
    if shape == (49, 49):
        assert len(counted.asked) == 17**2 + 2 * 17 * 2 + 4


def test_where_something_happens_every_cell_is_computed_and_elsewhere_few():
    y, x = torch.meshgrid(torch.arange(49.0), torch.arange(49.0), indexing="ij")
    bump = torch.exp(-((y - 24) ** 2 + (x - 17) ** 2) / 18)
    counted = Counted(bump)
    found = refined((49, 49), 9, 0.02, counted, judge)
    assert float((found - counted.values).abs().max()) < 0.02
    near = [int(n) for n in torch.arange(49 * 49)[(bump > 0.6).flatten()]]
    assert set(near) <= set(counted.asked)
    assert len(counted.asked) == len(set(counted.asked)) < 49 * 49 / 2


def test_a_network_that_sees_strides_and_borders_is_foretold_on_the_mean():
    """What alternates from cell to cell, and the outermost cells, are no reason to refine."""
    values = plane(49, 49)
    values[:, ::2] += 1
    values[0] += 10
    counted = Counted(values)
    found = refined((49, 49), 9, 0.7, counted, judge)
    assert len(counted.asked) < 49 * 49 / 4
    assert float((found - counted.values)[2 * 49 :].mean().abs()) < 0.1
