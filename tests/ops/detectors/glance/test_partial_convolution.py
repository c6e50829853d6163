"""Partial convolutions against their equation, and that hidden pixels change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from ops.detectors.glance.partial_convolution import (
    MaskedFeatures,
    PartialNetwork,
    check_network,
    partial_module,
)
from ops.errors import UserError
from ops.features.backbone import Backbone


class Residual(nn.Module):
    """What squeezenet lacks: norms, a residual branch with a stride, padding, a sum."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.one = nn.Conv2d(6, 8, 3, 2, 1)
        self.two = nn.Conv2d(8, 8, 3, 1, 1)
        self.side = nn.Conv2d(6, 8, 1, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.pool(self.relu(self.norm(self.stem(x))))
        y = self.two(self.relu(self.one(x)))
        y += self.side(x)
        return {"layer": self.relu(y)}


def networks(backbone: Backbone) -> list[fx.GraphModule]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        residual = fx.symbolic_trace(Residual()).eval()
        residual.norm.running_mean.normal_()
    return [backbone.trainable_copy(), residual]


def hiding(size: int, top: int, left: int, patch: int) -> Tensor:
    mask = torch.ones(1, 1, size, size)
    mask[:, :, top : top + patch, left : left + patch] = 0
    return mask


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 2, 2), (1, 2, 0)])
def test_a_partial_convolution_is_the_equation(kernel, stride, padding):
    generator = torch.Generator().manual_seed(2)
    module = nn.Conv2d(2, 3, kernel, stride, padding).double()
    features = torch.randn(1, 2, 9, 8, generator=generator, dtype=torch.float64)
    mask = (torch.rand(1, 1, 9, 8, generator=generator) < 0.5).double()
    mask[..., :4] = 0
    found = partial_module(module, MaskedFeatures.of(features, mask), padding)
    empty = 0
    for y in range(found.mask.shape[2]):
        for x in range(found.mask.shape[3]):
            total, seen = torch.zeros(3, dtype=torch.float64), 0
            for dy in range(kernel):
                for dx in range(kernel):
                    at = (y * stride + dy - padding, x * stride + dx - padding)
                    if 0 <= at[0] < 9 and 0 <= at[1] < 8 and mask[0, 0, at[0], at[1]]:
                        total += module.weight[:, :, dy, dx] @ features[0, :, at[0], at[1]]
                        seen += 1
            expected = total * kernel**2 / seen + module.bias if seen else total
            torch.testing.assert_close(found.features[0, :, y, x], expected, rtol=0, atol=1e-12)
            assert found.mask[0, 0, y, x] == (seen > 0)
            empty += not seen
    assert empty


def test_masks_are_binary_and_hidden_features_are_zero(backbone):
    mask = hiding(40, 0, 0, 24)
    for network in networks(backbone):
        walk = PartialNetwork(network)
        walk.run(MaskedFeatures.of(torch.rand(1, 3, 40, 40), mask))
        for name, seen in walk.maps.items():
            assert set(seen.mask.unique().tolist()) <= {0.0, 1.0}, name
            assert not seen.features.masked_select((seen.mask == 0).expand_as(seen.features)).any()
        assert 0 < walk.maps["features_2" if "features_2" in walk.maps else "pool"].mask.mean() < 1


@pytest.mark.parametrize("hidden", [0.5, -1e30, float("nan"), float("inf")])
def test_hidden_pixels_change_nothing_by_a_bit(backbone, image, hidden):
    mask = hiding(40, 9, 14, 16)
    other = torch.where(mask == 0, hidden, image)
    for network in networks(backbone):
        plain, changed = (
            PartialNetwork(network).run(MaskedFeatures.of(x, mask)) for x in (image, other)
        )
        for layer, seen in plain.items():
            assert torch.isfinite(seen.mean()).all()
            assert torch.equal(changed[layer].mean(), seen.mean())
        # and what is not hidden does
        shifted = PartialNetwork(network).run(MaskedFeatures.of(image.roll(1, 3), mask))
        assert not torch.equal(shifted[layer].mean(), seen.mean())


def test_with_nothing_hidden_only_the_border_differs_from_the_network(backbone):
    image = torch.rand(1, 3, 64, 64)
    ours = PartialNetwork(backbone.trainable_copy()).run(
        MaskedFeatures(backbone.normalised(image), torch.ones(1, 1, 64, 64))
    )
    for layer, theirs in zip(ours.values(), backbone(image), strict=True):
        inner = slice(4, -4) if theirs.shape[2] > 10 else slice(3, -3)
        torch.testing.assert_close(
            layer.features[..., inner, inner], theirs[..., inner, inner], rtol=1e-4, atol=1e-5
        )


def test_a_network_that_cannot_ignore_hidden_pixels_is_refused():
    network = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)))
    with pytest.raises(UserError, match="contains GroupNorm, which cannot ignore hidden pixels"):
        check_network(network, "it")
