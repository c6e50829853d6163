"""Moments against NumPy in one pass over everything."""

import numpy as np
import pytest
import torch

from ops.features.moments import Moments, bands, pack, packed_size, squared_lengths, unpack

PLACES, WIDTH = 3, 40  # more than a band


def random_vectors(count: int, seed: int = 0) -> torch.Tensor:
    """Correlated vectors (count, places, width), far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(PLACES, WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    vectors = torch.randn(count, PLACES, WIDTH, generator=generator, dtype=torch.float64)
    return torch.einsum("npd,pde->npe", vectors, mix) + 1000


def moments_of(parts) -> Moments:
    moments = Moments(PLACES, WIDTH)
    for part in parts:
        moments.add(part)
    return moments


def symmetric(lower: torch.Tensor) -> torch.Tensor:
    return lower.tril() + lower.tril(-1).transpose(1, 2)


@pytest.mark.parametrize("seed", range(5))
def test_any_partition_and_order_gives_the_covariance_of_one_pass(seed):
    rng = np.random.default_rng(seed)
    vectors = random_vectors(97)
    cuts = sorted(rng.integers(0, 98, size=rng.integers(1, 12)).tolist())  # some parts are empty
    parts = vectors[torch.from_numpy(rng.permutation(97))].tensor_split(cuts)
    moments = moments_of(parts)
    assert moments.count == 97
    covariance = symmetric(moments.covariance(slice(None)))
    for place in range(PLACES):
        expected = np.cov(vectors[:, place].numpy(), rowvar=False)
        assert np.allclose(moments.mean[place], vectors[:, place].mean(0), rtol=1e-13)
        assert np.abs(covariance[place].numpy() - expected).max() < 1e-12 * np.abs(expected).max()


def test_small_variances_beside_a_large_mean_are_not_lost():
    vectors = random_vectors(50) * 1e-3 + 1e6
    covariance = symmetric(moments_of(vectors.split(7)).covariance(slice(None)))
    expected = np.cov(vectors[:, 1].numpy(), rowvar=False)
    assert np.allclose(covariance[1], expected, rtol=1e-6, atol=1e-9)


def test_one_vector_has_no_covariance_and_none_changes_nothing():
    moments = moments_of([random_vectors(1), random_vectors(0)])
    assert torch.equal(moments.mean, random_vectors(1)[0])
    assert not moments.covariance(slice(None)).any()
    whitening, definite = moments.whitening(slice(0, 2), ridge=0.01)
    assert definite
    unpacked = unpack(whitening, WIDTH)
    assert torch.equal(unpacked[0][0], torch.eye(32, dtype=torch.float64) * 10)


def test_whitened_gaussian_samples_have_squared_length_of_about_their_dimension():
    """On average: exactly (n - 1) / n * d for the samples themselves, and d for new ones."""
    samples = random_vectors(20_000)
    moments = moments_of(samples.tensor_split(9))
    whitening, _ = moments.whitening(slice(None), ridge=0.0)

    def mean_square(vectors):
        return squared_lengths(whitening, (vectors - moments.mean).permute(1, 2, 0)).mean(dim=1)

    n = len(samples)
    same = mean_square(samples)
    torch.testing.assert_close(same, torch.full_like(same, WIDTH * (n - 1) / n), rtol=1e-9, atol=0)
    generator = torch.Generator().manual_seed(1)
    chol = torch.linalg.cholesky(symmetric(moments.covariance(slice(None))))
    fresh = torch.randn(20_000, PLACES, WIDTH, generator=generator, dtype=torch.float64)
    fresh = torch.einsum("npd,ped->npe", fresh, chol) + moments.mean
    assert mean_square(fresh).tolist() == pytest.approx([WIDTH] * PLACES, rel=0.01)


def test_whitening_is_the_inverse_of_the_cholesky_factor():
    moments = moments_of([random_vectors(60)])
    whitening, definite = moments.whitening(slice(1, 3), ridge=0.5)
    assert definite
    expected = np.cov(random_vectors(60)[:, 1].numpy(), rowvar=False) + 0.5 * np.eye(WIDTH)
    matrix = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for (start, end), band in zip(bands(WIDTH), unpack(whitening, WIDTH), strict=True):
        matrix[start:end, :end] = band[0]
    assert np.allclose(matrix.T @ matrix, np.linalg.inv(expected), rtol=1e-8)
    assert not torch.triu(matrix, 1).any()


def test_a_singular_covariance_is_reported():
    flat = random_vectors(60)
    flat[:, 1] = 0
    assert moments_of([flat]).whitening(slice(0, 1), ridge=0.0)[1]
    assert not moments_of([flat]).whitening(slice(0, 2), ridge=0.0)[1]


@pytest.mark.parametrize("width", [1, 31, 32, 33, 100])
def test_packing_loses_nothing_and_less_than_the_square_is_kept(width):
    lower = torch.randn(2, width, width).tril()
    packed = pack(lower)
    assert packed.shape == (2, packed_size(width))
    assert packed_size(width) <= width * (width + 31) / 2 + 512
    for (start, end), band in zip(bands(width), unpack(packed, width), strict=True):
        assert torch.equal(band, lower[:, start:end, :end])
        assert band.data_ptr() >= packed.data_ptr()  # a view
    assert bands(width)[-1][1] == width
