"""Flows against independent computations, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ops.flows.vector_flow import NegativeLogLikelihood, VectorFlow, soft_clamp


@pytest.fixture
def flow() -> VectorFlow:
    flow = VectorFlow(width=7, blocks=3, hidden=16, seed=1).double()
    flow.mean.copy_(torch.arange(7) / 5)
    flow.std.copy_(torch.arange(1, 8) / 3)
    return flow


def vectors(count: int, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) * 3


def test_the_inverse_undoes_the_flow(flow):
    inputs = vectors(20)
    latent, _ = flow(inputs)
    assert not torch.allclose(latent, inputs, atol=0.1)
    torch.testing.assert_close(flow.inverse(latent), inputs, rtol=0, atol=1e-10)


def test_the_volume_change_is_the_determinant_of_the_jacobian(flow):
    inputs = vectors(5)
    with torch.no_grad():
        _, volume = flow(inputs)
    for vector, log_det in zip(inputs, volume, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None])[0][0], vector)
        assert float(log_det) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-10)


def test_the_log_scale_is_clamped_as_the_authors_do():
    for s in (0.01, 1.0, 10.0, -1e9):
        ours = 3 * float(soft_clamp(torch.tensor(s, dtype=torch.float64)))
        assert ours == pytest.approx(3 * 0.636 * math.atan(s / 3), rel=1e-12)


def test_permutations_are_those_of_numpys_generator_seeded_with_the_block():
    flow = VectorFlow(width=768, blocks=8, hidden=4, seed=0)
    for block in range(8):
        expected = np.random.RandomState(block).permutation(768)
        assert flow.state_dict()[f"_flow.module_list.{2 * block}.perm"].tolist() == list(expected)


def test_global_generators_are_left_as_they_were():
    numpys, torchs = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    VectorFlow(width=6, blocks=2, hidden=4, seed=0)
    assert (np.random.get_state()[1] == numpys).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torchs)


def test_a_seed_decides_the_weights():
    one, same, other = (VectorFlow(6, 2, 4, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_the_parameter_count_is_known_beforehand(flow):
    trained = sum(p.numel() for p in flow.parameters() if p.requires_grad)
    assert VectorFlow.parameter_count(7, 3, 16) == trained
    assert VectorFlow.parameter_count(768, 8, 2048) == 172_077_056  # the authors'


def test_the_loss_of_normal_vectors_under_the_identity_is_a_half():
    flow = VectorFlow(width=6, blocks=2, hidden=4, seed=0).double()
    with torch.no_grad():
        for weight in flow.parameters():
            if weight.requires_grad:
                weight.zero_()
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(50_000, 6, generator=generator, dtype=torch.float64)
    assert float(NegativeLogLikelihood(flow)(normal).mean()) == pytest.approx(0.5, abs=0.01)
