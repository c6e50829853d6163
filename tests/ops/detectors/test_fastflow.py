"""FastFlow against its definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ops.detectors.detector import Checkpoint
from ops.detectors.fastflow import FastFlow, FastFlowSettings
from ops.detectors.fit_cost import FitSize
from ops.distributed import Alone
from ops.flows.feature_map_flow import MapFlows

SMALL = {"blocks": 3, "hidden": 0.1, "epochs": 2, "batch": 3}


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def fitted(backbone, images):
    detector = FastFlow(FastFlowSettings(**SMALL), backbone)
    detector.add_images(images, torch.arange(len(images)))
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detector


def test_a_map_ranks_as_the_papers_does_and_the_score_is_its_maximum(fitted, backbone, images):
    found = fitted.score(images[:1])
    with torch.no_grad():
        latents = [latent for latent, _ in fitted.network.latents(backbone(images[:1]))]
        layers = [-torch.exp(-z.square().mean(dim=1, keepdim=True).double() / 2) for z in latents]
        large = [F.interpolate(m, size=(64, 64), mode="bilinear") for m in layers]
    papers = (sum(large) / len(large))[0, 0]
    assert found.map.shape == (1, 64, 64)
    torch.testing.assert_close(-(-found.map[0].double()).exp(), papers, rtol=1e-5, atol=0)
    assert float(found.image[0]) == float(found.map.max())


def test_kernels_alternate_by_default(backbone):
    def kernels(kind):
        settings = FastFlowSettings(blocks=3, kernels=kind)
        built = [subnet(4, 4) for subnet in FastFlow(settings, backbone).subnets()]
        convolutions = [[p for p in net if isinstance(p, nn.Conv2d)] for net in built]
        return [{c.kernel_size[0] for c in net} for net in convolutions]

    assert kernels("alternating") == [{3}, {1}, {3}]
    assert kernels("3x3") == [{3}, {3}, {3}]


def test_the_size_of_the_authors_flow_on_resnet18(backbone):
    """8 couplings with as many hidden channels as come in, 3 x 3, on 64 channels at 64 x 64."""
    subnets = FastFlow(FastFlowSettings(kernels="3x3"), backbone).subnets()
    subnet = (32 * 32 * 9 + 32) + (32 * 64 * 9 + 64)
    expected = 8 * (subnet + 2 * 64) + 2 * 64**3
    assert MapFlows.parameter_count([(64, 64, 64)], subnets, "trained") == expected


def test_the_estimate_is_what_a_fit_takes(fitted, backbone, images):
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    estimate = FastFlow.estimate(fitted.settings, FitSize(64, shapes, 4, 1))
    weights = list(fitted.network.parameters())
    assert estimate.model_bytes == sum(4 * p.numel() for p in weights)
    assert estimate.vectors == 4 * (15 * 15 + 7 * 7)
    kept = kept_bytes(fitted.new_network(), fitted.features(images[:3]))
    trained = sum(4 * p.numel() for p in weights if p.requires_grad)
    activations = estimate.fit_bytes - 6 * trained - 2 * (estimate.model_bytes - trained)
    activations -= 4 * 2 * 3 * 64 * 64
    assert kept <= activations <= 1.6 * kept


def kept_bytes(network, inputs):
    """Bytes that autograd keeps of a step, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = network(inputs)
    assert torch.isfinite(losses).all()
    return sum(size for size, _ in kept.values())


def test_the_timing_probe_is_a_step_of_one_image(backbone, images):
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    timing_probe = FastFlow.timing_probe(FastFlowSettings(**SMALL), FitSize(64, shapes, 48, 2))
    timing_probe.work()
    assert timing_probe.times == 2 * 48 / 2


def test_the_map_ceiling_is_a_multiple_of_the_largest_value(fitted, images):
    largest = max(float(drawn.max()) for drawn in fitted.score(images).map)
    assert fitted.map_ceiling() == pytest.approx(8 * largest)
    assert math.isfinite(largest)
