"""Stains are visible and determined by their generator."""

from __future__ import annotations

import torch

from ops.augment.stains import add_stains


def drawn(seed: int, patch: torch.Tensor) -> torch.Tensor:
    pool = list(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(9)))
    return add_stains(patch, pool, torch.Generator().manual_seed(seed))


def test_enough_pixels_change_visibly_and_most_stay_as_they_were():
    exchanges = []
    for seed in range(60):
        patch = torch.full((3, 32, 32), (seed % 3) / 2)
        found = drawn(seed, patch)
        assert found.min() >= 0
        assert found.max() <= 1
        changed = (found - patch).abs().amax(dim=0) > 8 / 255
        exchanges.append(float(changed.float().mean()))
    assert min(exchanges) >= 0.002
    assert sum(exchanges) / len(exchanges) < 0.2
    assert len(set(exchanges)) > 30


def test_the_same_generator_gives_the_same_stain():
    patch = torch.rand(3, 32, 32)
    assert torch.equal(drawn(1, patch), drawn(1, patch))
    assert not torch.equal(drawn(1, patch), drawn(2, patch))
