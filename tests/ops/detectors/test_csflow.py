"""CS-Flow against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ops.detectors.csflow import CsFlow, CsFlowSettings
from ops.detectors.detector import Checkpoint
from ops.detectors.fit_cost import FitSize
from ops.distributed import Alone
from tests.ops.detectors.test_fastflow import kept_bytes

SMALL = {"scales": 2, "blocks": 2, "hidden": 6, "epochs": 2, "batch": 3}


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def fitted(backbone, images):
    detector = CsFlow(CsFlowSettings(**SMALL), backbone)
    detector.add_images(images, torch.arange(len(images)))
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detector


def test_features_of_each_scale_are_concatenated_layers(fitted, backbone, images):
    whole, half = fitted.features(images)
    assert torch.equal(whole[:, :128], backbone(images)[0])
    small = backbone(images[:, :, ::2, ::2].contiguous())
    assert torch.equal(half[:, :128], small[0])
    coarse = F.interpolate(small[1], size=small[0].shape[2:], mode="bilinear")
    assert torch.equal(half[:, 128:], coarse)


def test_the_score_is_over_all_scales_and_the_map_over_the_finest(fitted, images):
    found = fitted.score(images[:1])
    with torch.no_grad():
        latents, _ = fitted.network.latents(fitted.features(images[:1]))
    squares = torch.cat([latent.flatten() for latent in latents]).square()
    assert float(found.image[0]) == pytest.approx(float(squares.mean()) / 2, rel=1e-6)
    torch.testing.assert_close(found.map[0], latents[0][0].square().mean(dim=0) / 2)


def test_gradients_are_clipped(fitted, monkeypatch):
    monkeypatch.setattr(fitted, "network", fitted.new_network())
    weights = list(fitted.network.parameters())
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimiser = torch.optim.SGD(weights, lr=1.0)
    before = torch.cat([weight.detach().flatten() for weight in weights])
    fitted.update(optimiser)
    after = torch.cat([weight.detach().flatten() for weight in weights])
    assert float((after - before).norm()) == pytest.approx(1.0, rel=1e-3)


def test_the_estimate_is_what_a_fit_takes(backbone, images):
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    detector = CsFlow(CsFlowSettings(**SMALL | {"hidden": 64}), backbone)
    detector.add_images(images, torch.arange(3))
    estimate = CsFlow.estimate(detector.settings, FitSize(64, shapes, 3, 1))
    kept = kept_bytes(detector.new_network(), detector.features(images))
    trained = sum(4 * p.numel() for p in detector.new_network().parameters())
    assert estimate.model_bytes == trained
    activations = estimate.fit_bytes - 6 * trained - 3 * 2 * 3 * 64 * 64
    assert kept <= activations <= 1.6 * kept
    timing_probe = CsFlow.timing_probe(detector.settings, FitSize(64, shapes, 48, 2))
    timing_probe.work()
    assert timing_probe.times == 2 * 48 / 2
