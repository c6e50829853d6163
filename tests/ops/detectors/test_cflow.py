"""CFLOW-AD against its definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ops.augment.rotation import rotate_images
from ops.detectors.cflow import CFlow, CFlowSettings
from ops.detectors.detector import Checkpoint
from ops.detectors.fit_cost import FitSize
from ops.distributed import Alone
from ops.flows.conditional_flow import Positions
from tests.ops.detectors.test_fastflow import kept_bytes

SMALL = {"blocks": 2, "condition": 8, "mixing": "hard", "epochs": 2, "batch": 3, "fibers": 90}
CELLS = [15 * 15, 7 * 7]


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def fitted(backbone, images):
    detector = CFlow(CFlowSettings(**SMALL), backbone)
    detector.add_images(images, torch.arange(len(images)))
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detector


def samples(detector, images):
    return [(row, detector.sample(image, row)) for row, image in enumerate(images)]


def test_an_epoch_takes_every_position_of_every_layer_once(fitted, images):
    steps = list(fitted.steps(samples(fitted, images[:3]), 0, 3))
    assert len(steps) == 225 * 3 // 90
    for layer, cells in enumerate(CELLS):
        places = torch.cat([step[layer].places for step in steps], dim=1)
        assert torch.equal(places.sort().values, torch.arange(cells).expand(3, -1))
        assert not torch.equal(places[0], places[1])
        counts = {step[layer].places.shape[1] for step in steps}
        assert counts <= {cells // 7, cells // 7 + 1}


def test_a_smaller_batch_makes_fewer_steps_on_every_rank(fitted, images):
    counts = [
        len(list(fitted.steps(samples(fitted, images[:mine]), 0, of)))
        for mine, of in ((0, 3), (1, 3), (1, 1), (0, 1))
    ]
    assert counts == [225 * 3 // 90, 225 * 3 // 90, 225 // 90, 225 // 90]


def test_positions_come_with_their_vectors_of_the_rotated_image(fitted, images):
    given = samples(fitted, images[:3])
    maps = fitted.rotated_features(given, 4)
    for step in fitted.steps(given, 4, 3):
        for layer, part in zip(maps, step, strict=True):
            for image in range(3):
                expected = layer[image].flatten(1)[:, part.places[image]].T
                assert torch.equal(part.vectors[image], expected)
    turned = rotate_images(images[:1], torch.tensor([fitted._angle(0, 4)]))
    assert torch.allclose(maps[0][:1], fitted.features(turned)[0], atol=1e-3)


def test_angles_differ_by_image_and_epoch_and_are_bounded(fitted):
    angles = [fitted._angle(row, epoch) for row in range(20) for epoch in range(20)]
    assert len(set(angles)) == 400
    assert 0.9 * math.radians(5) < max(map(abs, angles)) <= math.radians(5)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine(backbone):
    rate = CFlow(CFlowSettings(), backbone).learning_rate
    assert rate(0) == pytest.approx(2e-5)
    assert rate(8) == pytest.approx((rate(0) + rate(16)) / 2)
    low, high = 2e-7, 2e-4
    for epoch in (16, 100, 199):
        cosine = low + (high - low) * (1 + math.cos(math.pi * epoch / 200)) / 2
        assert rate(epoch) == pytest.approx(cosine)
    for epochs in (1, 4, 16, 30):
        short = CFlow(CFlowSettings(epochs=epochs), backbone)
        assert max(map(short.learning_rate, range(epochs))) > 0.9 * high


def test_a_map_ranks_as_the_papers_does_and_the_score_is_its_maximum(fitted, backbone, images):
    found = fitted.score(images[:1])
    large = []
    with torch.no_grad():
        for number, layer in enumerate(backbone(images[:1])):
            vectors = layer.flatten(2).transpose(1, 2)
            places = torch.arange(vectors.shape[1])[None]
            logs = fitted.network.likelihoods(number, Positions(vectors, places))
            relative = (logs - fitted.network.peaks[number]).exp().view(1, 1, *layer.shape[2:])
            large.append(F.interpolate(relative, size=(64, 64), mode="bilinear"))
    papers = len(large) - sum(large)[0, 0]
    assert found.map.shape == (1, 64, 64)
    ours = 2 - 2 * (-found.map[0].double()).exp()
    torch.testing.assert_close(ours, papers, rtol=1e-5, atol=1e-6)
    assert float(found.image[0]) == float(found.map.max())


def test_peaks_are_the_largest_of_the_good_images(fitted, backbone, images):
    expected = torch.full((2,), -math.inf, dtype=torch.float64)
    with torch.no_grad():
        for image in images:
            for number, layer in enumerate(backbone((image[None] * 65535).round() / 65535)):
                vectors = layer.flatten(2).transpose(1, 2)
                places = torch.arange(vectors.shape[1])[None]
                logs = fitted.network.likelihoods(number, Positions(vectors, places))
                expected[number] = expected[number].maximum(logs.max())
    torch.testing.assert_close(fitted.network.peaks, expected)


def test_the_estimate_is_what_a_fit_takes(fitted, backbone, images):
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    estimate = CFlow.estimate(fitted.settings, FitSize(64, shapes, 4, 1))
    network = fitted.new_network()
    weights = list(network.parameters())
    assert estimate.model_bytes == sum(4 * p.numel() for p in weights)
    assert estimate.vectors == 4 * sum(CELLS)
    kept = kept_bytes(network, next(fitted.steps(samples(fitted, images[:3]), 0, 3)))
    trained = sum(4 * p.numel() for p in weights if p.requires_grad)
    rest = (
        estimate.fit_bytes
        - 6 * trained
        - 2 * (estimate.model_bytes - trained)
        - 4 * 2 * 3 * 64 * 64
    )
    features = 4 * 2 * 3 * sum(math.prod(shape) for shape in shapes)
    whole = max(4 * (5 * c + 5 * (c - c // 2 + 8)) * h * w for c, h, w in shapes)
    assert kept <= rest - features - whole <= 1.6 * kept


def test_the_timing_probe_is_a_step_of_one_worker(backbone, images):
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    timing_probe = CFlow.timing_probe(CFlowSettings(**SMALL), FitSize(64, shapes, 48, 2))
    timing_probe.work()
    assert timing_probe.times == 2 * 7 * 48 / 3


def test_rotations_are_loaded_and_not_drawn_again(backbone, images, monkeypatch):
    drawn = CFlow(CFlowSettings(**SMALL | {"mixing": "soft", "epochs": 1}), backbone)
    drawn.add_images(images, torch.arange(len(images)))
    drawn.fit(Alone(), lambda *_: None, Checkpoint())
    loaded = CFlow(drawn.settings, backbone)
    monkeypatch.setattr("scipy.stats.special_ortho_group.rvs", None)
    loaded.load_state(drawn.state())
    assert torch.equal(loaded.score(images).map, drawn.score(images).map)
