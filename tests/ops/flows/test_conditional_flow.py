"""Conditional flows on positions against independent computations, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ops.errors import UserError
from ops.flows.conditional_flow import PositionFlows, Positions, position_codes
from ops.flows.vector_flow import fixed_value_count
from tests.ops.conftest import moved

SHAPES = [(4, 3, 2), (5, 2, 2)]
CONDITION = 8


@pytest.fixture(params=["soft", "hard"])
def flows(request) -> PositionFlows:
    """With scales and shifts that have moved."""
    flows = PositionFlows(SHAPES, 3, 1.9, CONDITION, request.param, seed=1).double()
    return moved(flows, 0.5)


def positions(layer: int, images: int = 2, count: int = 3) -> Positions:
    generator = torch.Generator().manual_seed(layer)
    channels, height, width = SHAPES[layer]
    vectors = torch.randn(images, count, channels, generator=generator).double()
    return Positions(vectors, torch.randint(height * width, (images, count), generator=generator))


@pytest.mark.parametrize("layer", [0, 1])
def test_the_inverse_undoes_the_flow(flows, layer):
    at = positions(layer)
    latent, _ = flows.latents(layer, at)
    assert not torch.allclose(latent, at.vectors, atol=0.1)
    # Rotations are drawn as float32.
    back = flows.inverse(layer, latent, at.places)
    torch.testing.assert_close(back, at.vectors, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_volume_change_is_the_determinant_of_the_jacobian(flows, layer):
    at = positions(layer, images=1, count=1)

    def latent_of(vector):
        return flows.latents(layer, Positions(vector[None, None], at.places))[0][0, 0]

    jacobian = torch.autograd.functional.jacobian(latent_of, at.vectors[0, 0])
    volume = float(flows.latents(layer, at)[1].detach())
    assert abs(volume) > 0.01
    assert volume == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-5)


def test_the_loss_is_of_each_images_mean_log_sigmoid_summed_over_layers(flows):
    layers = [positions(layer) for layer in range(2)]
    expected = np.zeros(2)
    for layer, part in enumerate(layers):
        latent, volume = (output.detach().numpy() for output in flows.latents(layer, part))
        logs = (norm.logpdf(latent).sum(axis=2) + volume) / SHAPES[layer][0]
        expected += np.logaddexp(0, -logs).mean(axis=1)
    np.testing.assert_allclose(flows(layers).detach().numpy(), expected, rtol=1e-12)


def test_the_likelihood_of_a_vector_depends_on_its_position(flows):
    vector = positions(0, 1, 1).vectors.expand(1, 6, -1)
    logs = flows.likelihoods(0, Positions(vector, torch.arange(6)[None]))[0]
    assert len(set(logs.tolist())) == 6


def test_an_empty_batch_has_no_loss_and_zero_gradients(flows):
    none = [Positions(p.vectors[:0], p.places[:0]) for p in map(positions, range(2))]
    losses = flows(none)
    assert losses.shape == (0,)
    losses.sum().backward()
    for name, weight in flows.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert not weight.grad.any(), name


def test_the_parameter_count_is_known_beforehand(flows):
    trained = sum(p.numel() for p in flows.parameters() if p.requires_grad)
    fixed = sum(p.numel() for p in flows.parameters() if not p.requires_grad)
    assert PositionFlows.parameter_count(SHAPES, 3, CONDITION) == trained
    assert fixed_value_count(SHAPES, 3) == fixed


def test_codes_are_sines_and_cosines_of_column_then_row():
    height, width, size = 3, 5, 12
    codes = position_codes(size, height, width)
    assert codes.shape == (15, 12)
    for row in range(height):
        for column in range(width):
            expected = []
            for at in (column, row):
                for pair in range(3):
                    angle = at / 10000 ** (2 * pair / 6)
                    expected += [math.sin(angle), math.cos(angle)]
            code = codes[row * width + column].tolist()
            assert code == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match="multiple of 4"):
        position_codes(10, 2, 2)
