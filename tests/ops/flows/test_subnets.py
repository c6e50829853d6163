"""Subnets against their definition, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from ops.errors import UserError
from ops.flows.feature_map_flow import MapFlows
from ops.flows.subnets import Attention, Dropout, DropoutGenerators, positional_codes, stack


def random_maps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_attention_is_softmax_of_scaled_products_head_by_head():
    attention, x = Attention(8, 2, 0.0, DropoutGenerators()).double(), random_maps(2, 8, 3, 4)
    tokens = x.flatten(2).transpose(1, 2) + positional_codes(12, 8)
    weight = attention.project.weight  # (24, 8): keys, values, queries
    keys, values, queries = (tokens @ part.T for part in weight.split(8))
    expected = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = queries[..., head] / math.sqrt(4) @ keys[..., head].transpose(1, 2)
        expected.append(scores.softmax(dim=2) @ values[..., head])
    attended = torch.cat(expected, dim=2).transpose(1, 2).reshape(2, 8, 3, 4)
    torch.testing.assert_close(attention(x), attended)


def test_attention_is_the_same_with_and_without_weights_in_memory():
    sources = DropoutGenerators()
    attention, x = Attention(8, 2, 0.5, sources).double(), random_maps(2, 8, 3, 4)
    with_weights = attention.train()(x)  # no generator, so nothing is left out
    torch.testing.assert_close(attention.eval()(x), with_weights)
    sources.per_image = generators(2)
    assert not torch.allclose(attention.train()(x), with_weights)


def test_positions_are_sines_then_cosines_with_periods_up_to_ten_thousand():
    code = positional_codes(50, 6)
    assert code.shape == (50, 6)
    assert float(code[7, 0]) == pytest.approx(math.sin(7))
    assert float(code[7, 2]) == pytest.approx(math.sin(7 / 10_000))
    assert float(code[7, 4]) == pytest.approx(math.cos(7 / 100))
    assert len(code.unique(dim=0)) == 50


@pytest.mark.parametrize("pixels", [True, False])
def test_dropout_depends_on_an_images_own_generator_alone(pixels):
    sources, x = DropoutGenerators(), torch.ones(3, 40, 5, 5)
    dropout = Dropout(0.2, sources, pixels).train()
    sources.per_image = generators(3)
    dropped = dropout(x)
    sources.per_image = generators(3)[1:2]
    assert torch.equal(dropout(x[1:2]), dropped[1:2])
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert float((dropped == 0).float().mean()) == pytest.approx(0.2, abs=0.1)
    by_channel = (dropped == dropped[:, :, :1, :1]).all()
    assert bool(by_channel) is not pixels


def test_dropout_is_off_when_not_training():
    sources, x = DropoutGenerators(), torch.ones(2, 4, 5, 5)
    sources.per_image = generators(2)
    assert torch.equal(Dropout(0.5, sources, pixels=True).eval()(x), x)


def test_a_stack_has_as_many_weights_as_the_authors():
    subnet = stack(["conv", "attn"], 128, 4, 0.2, DropoutGenerators())
    assert sum(p.numel() for p in subnet(384, 768).parameters()) == 345_472
    assert MapFlows.parameter_count([(768, 28, 28)], [subnet] * 10, "plain") == 3_470_080


def test_a_flow_with_attention_has_a_correct_inverse_and_determinant():
    subnet = stack(["attn", "conv", "attn"], 8, 2, 0.2, DropoutGenerators())
    flows = MapFlows([(4, 2, 3)], [subnet] * 2, 2.0, "plain", seed=0).double().eval()
    x = torch.nn.functional.layer_norm(random_maps(3, 4, 2, 3), (4, 2, 3))
    ((latent, volume),) = flows.latents([x])
    torch.testing.assert_close(flows.inverse([latent])[0], x, rtol=0, atol=1e-4)
    flow = flows._flows[0]
    _, volume = flow(x)
    for image, log_det in zip(x, volume.detach(), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None])[0][0], image)
        expected = float(torch.linalg.slogdet(jacobian.reshape(24, 24))[1])
        assert float(log_det) == pytest.approx(expected, abs=1e-9)


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match=r"unknown subnet layers \['mlp'\]; known: conv"):
        stack(["conv", "mlp"], 8, 2, 0.0, DropoutGenerators())
    with pytest.raises(UserError, match="hidden 10 must be a multiple of twice the 4 heads"):
        stack(["attn"], 10, 4, 0.0, DropoutGenerators())
