"""DifferNet against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torchvision.transforms.functional import rotate

from ops.augment.rotation import rotate_images
from ops.detectors.detector import Checkpoint
from ops.detectors.differnet import DifferNet, DifferNetSettings
from ops.detectors.fit_cost import FitSize
from ops.detectors.uint16_images import to_uint16
from ops.distributed import Alone

SMALL = {"blocks": 2, "hidden": 16, "scales": 2, "views": 6, "epochs": 2, "score_transforms": 6}


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def fitted(backbone, images, **settings):
    detector = DifferNet(DifferNetSettings(**SMALL | settings), backbone)
    detector.add_images(images, torch.arange(len(images)))
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detector


def test_rotation_agrees_with_torchvision(images):
    for degrees in (0, 30, 90, -135):
        ours = rotate_images(images[:1], torch.tensor([math.radians(degrees)]))
        theirs = rotate(images[:1], degrees)
        assert (ours == theirs).float().mean() > 0.98  # ties between pixels at some angles
    assert torch.equal(rotate_images(images, torch.zeros(4)), images)


def test_features_are_means_over_space_largest_scale_first(backbone, images):
    detector = DifferNet(DifferNetSettings(**SMALL), backbone)
    features = detector._features(images, 2)
    half = F.interpolate(images, scale_factor=0.5, mode="nearest")
    maps = [*backbone(images), *backbone(half)]
    assert torch.equal(features, torch.cat([layer.mean(dim=(2, 3)) for layer in maps], dim=1))


def test_the_score_is_the_mean_of_z_squared_over_fixed_views(backbone, images):
    detector = fitted(backbone, images)
    angles = torch.arange(6) * (math.pi / 3)
    views = rotate_images(images[:1].expand(6, -1, -1, -1), angles)
    with torch.inference_mode():
        latent, _ = detector.network.flow(detector._features(views, 2))
    score = float(detector.score(images[:1]).image)
    assert score == pytest.approx(float(latent.square().mean()), rel=1e-5)


def test_the_map_is_the_gradient_of_the_loss_by_the_pixels(backbone, images):
    """One view, no blur: against a difference quotient along the gradient's own direction."""
    detector = fitted(backbone, images, score_transforms=1, blur=0.0)
    image = images[:1].clone().requires_grad_()
    loss = detector.network(detector._features(image, 2)).sum()
    (gradient,) = torch.autograd.grad(loss, image)
    expected = F.avg_pool2d(gradient.abs().mean(dim=1), 4)
    torch.testing.assert_close(detector.score(images[:1]).map, expected, rtol=1e-4, atol=1e-9)


def test_without_maps_scores_are_the_same(backbone, images):
    with_maps = fitted(backbone, images)
    without = fitted(backbone, images, maps="none")
    a, b = with_maps.score(images), without.score(images)
    torch.testing.assert_close(a.image, b.image, rtol=1e-5, atol=0)
    assert b.map.shape == (4, 1, 1)
    assert torch.equal(b.map[:, 0, 0], b.image)


def test_online_features_are_new_in_every_epoch_and_follow_from_the_seed(backbone, images):
    detector = fitted(backbone, images, features="online")
    sample = [(0, to_uint16(images[0]))]
    one, same, next_ = (detector.inputs(sample, epoch) for epoch in (0, 0, 1))
    assert one.shape == (4, detector._width())
    assert torch.equal(one, same)
    assert not torch.equal(one, next_)


def test_standardised_features_have_mean_zero_and_variance_one(backbone, images):
    detector = DifferNet(DifferNetSettings(**SMALL, standardise=True), backbone)
    detector.add_images(images, torch.arange(4))
    network = detector.new_network()
    detector.prepare(network, Alone())
    views = torch.cat(list(detector._samples.values()))
    scaled = (views - network.flow.mean) / network.flow.std
    varied = network.flow.std > 2e-3 * network.flow.std.max()
    assert varied.sum() > 50
    assert float(scaled.mean(dim=0).abs().max()) < 1e-3
    torch.testing.assert_close(
        scaled[:, varied].std(dim=0, correction=0), torch.ones(int(varied.sum())), rtol=1e-3, atol=0
    )


def test_noise_has_its_standard_deviation_and_follows_from_the_seed(backbone, images):
    detector = fitted(backbone, images, standardise=True, noise=0.5)
    sample = [(0, detector._random_views(images[0], 6, detector.generator("views", 0)))]
    order = torch.randperm(6, generator=detector.generator("epoch", 1, 0))
    noise = (detector.inputs(sample, 1) - sample[0][1][order[:4]]) / detector.network.flow.std
    assert float(noise.std()) == pytest.approx(0.5, rel=0.1)
    assert torch.equal(detector.inputs(sample, 1), detector.inputs(sample, 1))


def test_brightness_and_contrast_change_views(backbone, images):
    plain, varied = (
        DifferNet(DifferNetSettings(**SMALL, **jitter), backbone).sample(images[0], 0)
        for jitter in ({}, {"brightness": 0.15, "contrast": 0.15})
    )
    assert plain.shape == varied.shape
    assert not torch.allclose(plain, varied, rtol=1e-3)


def test_the_estimate_is_what_a_fit_takes(backbone, images):
    settings = DifferNetSettings(**SMALL)
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    estimate = DifferNet.estimate(settings, FitSize(64, shapes, 4, 1))
    detector = fitted(backbone, images)
    weights = [p for p in detector.network.parameters() if p.dtype == torch.float32]
    assert estimate.model_bytes == sum(4 * p.numel() for p in weights)
    assert estimate.vectors == 4 * 6
    timing_probe = DifferNet.timing_probe(settings, FitSize(64, shapes, 48, 2))
    timing_probe.work()
    assert timing_probe.times == 2 * 2 / 2


def shape(kind: str, seed: int) -> np.ndarray:
    """A white square or disc on black, at a random position and angle."""
    rng = np.random.default_rng(seed)
    picture = Image.new("L", (64, 64))
    x, y = rng.integers(24, 40, 2)
    box = [x - 14, y - 14, x + 14, y + 14]
    pen = ImageDraw.Draw(picture)
    if kind == "square":
        pen.rectangle(box, fill=255)
    else:
        pen.ellipse(box, fill=255)
    return np.asarray(picture.rotate(float(rng.uniform(0, 360))))


@pytest.mark.slow
def test_discs_among_squares_are_found(backbone):
    """The authors' own toy data: squares are good, circles are not."""
    drawn = [shape("square", i) for i in range(24)] + [shape("disc", i) for i in range(100, 108)]
    grey = torch.from_numpy(np.stack(drawn)).float()[:, None] / 255
    images = grey.expand(-1, 3, -1, -1)
    detector = fitted(
        backbone, images[:16], maps="none", views=16, epochs=40, batch=8, lr=2e-3, standardise=True
    )
    scores = detector.score(images[16:]).image.double().numpy()
    from sklearn.metrics import roc_auc_score

    assert roc_auc_score([0] * 8 + [1] * 8, scores) == 1.0
