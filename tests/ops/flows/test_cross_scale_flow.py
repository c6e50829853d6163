"""Flows on several scales against independent computations, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ops.flows.cross_scale_flow import CrossConvolutions, ScaleFlow

SHAPES = [(5, 4, 4), (5, 2, 2), (5, 1, 1)]
#: Sides that do not halve exactly.
ODD = [(3, 7, 5), (3, 4, 2)]


def perturbed_flow(shapes, blocks: int = 2) -> ScaleFlow:
    """With factors that are no longer zero."""
    flow = ScaleFlow(shapes, blocks, hidden=6, seed=1).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator).double())
    return flow


def maps(shapes, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(count, *shape, generator=generator).double() for shape in shapes]


@pytest.mark.parametrize("shapes", [SHAPES, ODD, SHAPES[:1]], ids=["halves", "odd", "one scale"])
def test_the_inverse_undoes_the_flow(shapes):
    flow, inputs = perturbed_flow(shapes), maps(shapes, 3)
    latents, _ = flow.latents(inputs)
    assert all(not torch.allclose(a, b, atol=0.1) for a, b in zip(latents, inputs, strict=True))
    for back, layer in zip(flow.inverse(latents), inputs, strict=True):
        torch.testing.assert_close(back, layer, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shapes", [[(3, 3, 2), (3, 1, 1)], ODD], ids=["small", "odd"])
def test_the_volume_change_is_the_determinant_of_the_jacobian_of_all_scales_together(shapes):
    flow, inputs = perturbed_flow(shapes), maps(shapes, 1)
    sizes = [layer.numel() for layer in inputs]

    def flat(values: Tensor) -> Tensor:
        parts = values.split(sizes)
        latents, _ = flow.latents([p.view(1, *s) for p, s in zip(parts, shapes, strict=True)])
        return torch.cat([latent.flatten() for latent in latents])

    jacobian = torch.autograd.functional.jacobian(flat, torch.cat([m.flatten() for m in inputs]))
    log_det = float(flow.latents(inputs)[1].detach())
    assert abs(log_det) > 0.1
    assert log_det == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-9)


def test_the_loss_is_minus_the_log_likelihood_per_element_without_the_constant():
    flow, inputs = perturbed_flow(SHAPES), maps(SHAPES, 3)
    latents, volume = flow.latents(inputs)
    squares = sum(latent.square().sum(dim=(1, 2, 3)) for latent in latents)
    torch.testing.assert_close(flow(inputs), (squares / 2 - volume) / (5 * (16 + 4 + 1)))


def test_an_untrained_flow_only_permutes_by_seeds_that_number_the_blocks():
    flow, inputs = ScaleFlow(SHAPES, 2, 4, seed=0).double(), maps(SHAPES, 2)
    latents, volume = flow.latents(inputs)
    assert not volume.any()
    draws = [np.random.RandomState(block) for block in (0, 1)]
    for latent, layer in zip(latents, inputs, strict=True):
        first, second = (torch.tensor(d.permutation(5)) for d in draws)
        assert torch.equal(latent, layer[:, first][:, second])


def test_a_scale_affects_only_itself_and_the_adjacent_scales():
    subnet = CrossConvolutions(2, 3, 4, scales=3, kernel=3).double()
    with torch.no_grad():
        subnet.factors.fill_(1.0)
    inputs = maps([(2, 8, 8), (2, 4, 4), (2, 2, 2)], 1)
    before = subnet(inputs)
    inputs[0] = inputs[0] + 1
    changed = [not torch.equal(a, b) for a, b in zip(subnet(inputs), before, strict=True)]
    assert changed == [True, True, False]


def test_the_last_kernel_is_larger_and_weights_are_counted_beforehand():
    flow = ScaleFlow([(4, 6, 6), (4, 3, 3)], 3, 5, seed=0)
    kernels = [block._of_left._first[0].kernel_size[0] for block in flow._blocks]
    assert kernels == [3, 3, 5]
    trained = sum(p.numel() for p in flow.parameters())
    assert ScaleFlow.parameter_count([(4, 6, 6), (4, 3, 3)], 3, 5) == trained
