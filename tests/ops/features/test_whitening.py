"""Whitening, against scikit-learn and Mahalanobis distances in float64."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from ops.distributed import Alone
from ops.errors import UserError
from ops.features import whitening
from ops.features.whitening import Whitening, broadcast_whitening, sample_ids
from tests.ops.threads import together


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    """Correlated, of very different variances, and far from zero."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(600, 12)) @ (rng.normal(size=(12, 12)) * np.geomspace(1, 20, 12))
    return torch.from_numpy((mixed + 100).astype(np.float32))


@pytest.mark.parametrize("shrinkage", [1e-9, 0.01, 1.0])
def test_distances_between_whitened_vectors_are_mahalanobis_distances(vectors, shrinkage):
    x = vectors.double().numpy()
    covariance = np.cov(x.T)
    covariance += shrinkage * covariance.diagonal().mean() * np.eye(12)
    expected = cdist(x[:50], x[50:], "mahalanobis", VI=np.linalg.inv(covariance))
    z = Whitening.of(vectors.split(100), shrinkage)(vectors).double().numpy()
    np.testing.assert_allclose(cdist(z[:50], z[50:]), expected, rtol=2e-4)


def test_without_shrinkage_it_is_the_whitening_of_scikit_learn(vectors):
    z = Whitening.of([vectors], 1e-12)(vectors)
    from sklearn.decomposition import PCA

    pca = PCA(whiten=True, svd_solver="full").fit(vectors.double().numpy())
    theirs = torch.from_numpy(pca.transform(vectors.double().numpy())).flip(1)
    signs = (z * theirs).sum(dim=0).sign()
    torch.testing.assert_close(z.double() * signs, theirs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(12), rtol=1e-3, atol=1e-3)


def test_batches_change_only_the_rounding(vectors):
    one, other = Whitening.of([vectors], 0.01), Whitening.of(vectors.split(7), 0.01)
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one(vectors), other(vectors), rtol=1e-3, atol=1e-4)


def test_a_feature_that_never_varies_is_not_divided_by_zero(vectors):
    still = torch.cat([vectors, torch.full((600, 2), 3.0)], dim=1)
    z = Whitening.of([still], 0.01)(still)
    moving = Whitening.of([vectors], 0.01 * 12 / 14)(vectors)  # the mean variance is lower
    np.testing.assert_allclose(cdist(z, z), cdist(moving, moving), rtol=2e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_vectors_that_are_all_alike_are_refused_on_every_rank(value):
    def program(group):
        alike = torch.full((9, 4), value)
        return broadcast_whitening(
            Whitening.of([alike], 0.01) if group.rank == 0 else None, 4, group
        )

    with pytest.raises(UserError, match=r"all alike.*metric = euclidean"):
        together(2, program)


def test_all_ranks_get_the_bits_of_the_one_whitening(vectors):
    own = Whitening.of([vectors], 0.01)
    results = together(
        3, lambda group: broadcast_whitening(own if group.rank == 1 else None, 12, group)
    )
    assert all(torch.equal(a, b) for each in results for a, b in zip(each, own, strict=True))
    assert broadcast_whitening(None, 12, Alone()) is None


@pytest.mark.parametrize("size", [10, 300, 5000])
def test_a_sample_depends_on_the_ids_alone(monkeypatch, size):
    monkeypatch.setattr(whitening, "SAMPLE", size)
    ids = torch.arange(1000) * 7
    expected = sample_ids(ids, Alone())
    assert len(expected) == min(size, 1000)
    assert set(expected.tolist()) <= set(ids.tolist())
    assert torch.equal(expected, expected.unique())  # ascending, none twice
    shards = [ids[1::2], ids[:0], ids[::2].flip(0)]
    for sampled in together(3, lambda group: sample_ids(shards[group.rank], group)):
        assert torch.equal(sampled, expected)


def test_a_sample_is_spread_evenly_over_ids_and_their_remainders(monkeypatch):
    """Ids count the patches of images row by row: a sample must not favour a place in them."""
    monkeypatch.setattr(whitening, "SAMPLE", 4000)
    sampled = sample_ids(torch.arange(80_000), Alone())
    for groups in (sampled // 10_000, sampled % 8):
        counts = torch.bincount(groups, minlength=8)
        assert ((counts - 500).abs() < 5 * 500**0.5).all()
