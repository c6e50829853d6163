"""Merged moments against numpy's of everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ops import moments
from ops.moments import Moments


@pytest.fixture
def vectors():
    """30 images, 4 positions, 5 channels, far from zero: raw squares would cancel."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 4, 5, generator=generator, dtype=torch.float64) + 1e4


def of(vectors, sizes):
    found = Moments(4, 5)
    for part in torch.split(vectors, sizes):
        found.add(part)
    return found


def check(found, vectors):
    assert found.count == len(vectors)
    for position in range(4):
        mine = vectors[:, position].numpy()
        np.testing.assert_allclose(found.mean[position], mine.mean(axis=0), rtol=1e-12)
        covariance = found.covariance(slice(position, position + 1))[0]
        np.testing.assert_allclose(covariance, np.cov(mine.T), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [[30], [1] * 30, [7, 0, 20, 3]], ids=str)
def test_vectors_may_come_in_any_pieces(vectors, sizes):
    check(of(vectors, sizes), vectors)


def test_moments_of_random_shards_merge_in_any_order(vectors):
    rng = np.random.default_rng(1)
    for _ in range(5):
        shards = np.array_split(rng.permutation(30), rng.integers(2, 6))
        found = Moments(4, 5)
        for shard in shards:
            found.merge(of(vectors[torch.from_numpy(shard)], len(shard)))
        found.merge(Moments(4, 5))
        check(found, vectors)


def test_chunks_change_rounding_alone(vectors, monkeypatch):
    whole = of(vectors, 10)
    monkeypatch.setattr(moments, "_CHUNK", 8 * 5 * 5)
    assert len(whole.chunks()) == 4
    torch.testing.assert_close(of(vectors, 10).m2, whole.m2, rtol=1e-9, atol=1e-9)


def test_one_vector_has_no_spread(vectors):
    found = of(vectors[:1], 1)
    assert torch.equal(found.covariance(slice(None)), torch.zeros(4, 5, 5, dtype=torch.float64))
