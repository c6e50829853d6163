"""Flows on maps against independent computations, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import Tensor

from ops.flows.feature_map_flow import MapFlows, negative_log_density
from ops.flows.subnets import convolutions
from ops.flows.vector_flow import fixed_value_count
from tests.ops.conftest import moved

SHAPES = [(4, 3, 3), (3, 2, 2)]
SUBNETS = [convolutions(3, 1.0), convolutions(1, 0.5), convolutions(3, 1.0)]


@pytest.fixture
def flows() -> MapFlows:
    """With scales and shifts that have moved."""
    flows = MapFlows(SHAPES, SUBNETS, 2.0, "plain", seed=1).double()
    return moved(flows, 3.0)


def maps(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    random_maps = [
        torch.randn(count, *shape, generator=generator).double() * 3 + 1 for shape in SHAPES
    ]
    return [
        (m - m.mean((1, 2, 3), True)) / m.std((1, 2, 3), False, keepdim=True) for m in random_maps
    ]


def test_the_inverse_undoes_the_flow(flows):
    inputs = maps(5)
    latents = [latent for latent, _ in flows.latents(inputs)]
    assert all(not torch.allclose(a, b, atol=0.1) for a, b in zip(latents, inputs, strict=True))
    for back, layer in zip(flows.inverse(latents), inputs, strict=True):
        torch.testing.assert_close(back, layer, rtol=0, atol=1e-4)  # a norm has its epsilon


@pytest.mark.parametrize("layer", [0, 1])
def test_the_volume_change_is_the_determinant_of_the_jacobian(flows, layer):
    flow, inputs = flows._flows[layer], maps(3)[layer]
    _, volume = flow(inputs)
    for image, log_det in zip(inputs, volume, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], image)
        square = jacobian.reshape(image.numel(), image.numel())
        assert abs(float(log_det.detach())) > 0.1
        expected = float(torch.linalg.slogdet(square)[1])
        assert float(log_det.detach()) == pytest.approx(expected, abs=1e-9)


def test_the_loss_is_minus_the_log_likelihood_of_each_image_constants_included(flows):
    inputs = maps(4)
    expected = np.zeros(4)
    for latent, volume in flows.latents(inputs):
        logs = norm.logpdf(latent.detach().numpy()).sum(axis=(1, 2, 3))
        expected -= logs + volume.detach().numpy()
    np.testing.assert_allclose(flows(inputs).detach().numpy(), expected, rtol=1e-12)


def test_an_empty_batch_has_no_loss_and_zero_gradients(flows):
    losses = flows([layer[:0] for layer in maps(1)])
    assert losses.shape == (0,)
    losses.sum().backward()
    for name, weight in flows.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert not weight.grad.any(), name


def test_maps_are_normalised_over_all_their_values_first():
    flows = MapFlows(SHAPES, [], 2.0, "trained", seed=0).double()
    for (latent, volume), layer in zip(flows.latents(maps(2)), maps(2), strict=True):
        torch.testing.assert_close(
            latent, F.layer_norm(layer * 7 + 3, layer.shape[1:]), atol=1e-4, rtol=0
        )
        assert not volume.any() if torch.is_tensor(volume) else volume == 0


@pytest.mark.parametrize("kind", ["trained", "plain"])
def test_the_parameter_count_is_known_beforehand(kind):
    flows = MapFlows(SHAPES, SUBNETS, 2.0, kind, seed=0)
    trained = sum(p.numel() for p in flows.parameters() if p.requires_grad)
    fixed = sum(p.numel() for p in flows.parameters() if not p.requires_grad)
    assert MapFlows.parameter_count(SHAPES, SUBNETS, kind) == trained
    assert fixed_value_count(SHAPES, len(SUBNETS)) == fixed


def test_a_seed_decides_weights_and_permutations_and_global_generators_stay():
    numpys, torchs = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    one, same, other = (
        MapFlows([(8, 2, 2)], SUBNETS, 2.0, "plain", seed).state_dict() for seed in (5, 5, 6)
    )
    assert (np.random.get_state()[1] == numpys).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torchs)
    assert all(torch.equal(one[key], same[key]) for key in one)
    permutations = [key for key in one if key.endswith("w_perm")]
    assert len(permutations) == 3
    assert any(not torch.equal(one[key], other[key]) for key in permutations)


def test_negative_log_density_is_ordered_as_the_negative_mean_of_up_sampled_densities():
    generator = torch.Generator().manual_seed(0)
    densities = [torch.rand(3, side, side, generator=generator) for side in (4, 2)]
    large = [
        F.interpolate(d[:, None], size=(8, 8), mode="bilinear", align_corners=False)[:, 0]
        for d in densities
    ]
    papers = -sum(large) / 2
    result = negative_log_density(densities, torch.Size((8, 8)))
    assert torch.equal(result.flatten().argsort(), papers.flatten().argsort())
    assert float(result.min()) >= 0


def test_negative_log_density_separates_densities_that_float32_cannot_and_is_never_infinite():
    unlikely = torch.tensor([[[1.0, 1e-30, 1e-300, 0.0]]], dtype=torch.float64)
    (result,) = negative_log_density([unlikely], torch.Size((1, 4)))
    assert float(result[0, 0]) == 0
    assert result[0].diff().min() > 10
    assert float(result[0, 2]) == pytest.approx(300 * math.log(10))
    assert torch.isfinite(result).all()
    assert torch.isnan(negative_log_density([unlikely * torch.nan], torch.Size((1, 4)))).all()
