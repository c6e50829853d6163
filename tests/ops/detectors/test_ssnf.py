"""SSNF: gate and synthetic images, which do not depend on the number of workers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ops.detectors.detector import Checkpoint
from ops.detectors.fit_cost import FitSize
from ops.detectors.gated_loss import gate
from ops.detectors.prefetch import prefetch
from ops.detectors.ssnf import Ssnf, SsnfSettings, share_samples
from ops.detectors.uint16_images import to_uint16
from ops.distributed import Alone
from ops.errors import UserError
from tests.ops.detectors.test_fastflow import kept_bytes
from tests.ops.detectors.test_trained import no_progress
from tests.ops.threads import together

SMALL = {"blocks": 2, "hidden": 4, "heads": 1, "epochs": 2, "batch": 3, "max_nll": 1e9}
INFINITE = float("inf")


@pytest.fixture(scope="module")
def images():
    """Five random images, the last one grey."""
    drawn = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    drawn[4] = drawn[4, :1]
    return drawn


def new(backbone, images, **settings):
    detector = Ssnf(SsnfSettings(**SMALL | settings), backbone)
    detector.add_images(images, torch.arange(len(images)))
    return detector


def loss(good, synthetic, max_nll=INFINITE, changed=None):
    good, synthetic = torch.tensor(good), torch.tensor(synthetic)
    changed = torch.ones(len(synthetic), dtype=torch.bool) if changed is None else changed
    gated = gate(good, synthetic, torch.as_tensor(changed), max_nll, Alone())
    return float((gated.weights * torch.cat([good, synthetic])).sum()), gated.pushed


def test_a_synthetic_image_less_likely_than_all_good_ones_does_not_pass():
    assert loss([1.0, 3.0], [3.0, 9.0]) == (2.0, 0)


def test_a_synthetic_image_more_likely_than_the_worst_good_one_passes():
    assert loss([1.0, 3.0], [2.5, 9.0]) == (0.5 * 2.0 - 0.5 * 2.5, 1)
    assert loss([1.0, 3.0], [2.5, 0.5]) == (0.5 * 2.0 - 0.5 * 1.5, 2)


def test_a_synthetic_image_above_max_nll_does_not_pass():
    assert loss([1.0, 3.0], [2.5, 0.5], max_nll=2.0) == (0.5 * 2.0 - 0.5 * 0.5, 1)
    assert loss([1.0, 3.0], [2.5, 2.1], max_nll=2.0) == (2.0, 0)


def test_a_synthetic_image_without_a_change_does_not_pass():
    assert loss([1.0, 3.0], [1.0, 2.0], changed=[False, True]) == (0.0, 1)


@pytest.mark.parametrize("synthetic", [[2.5, 0.2, 9.0, 5.9, 6.0, 1.0], [7.0] * 6])
@pytest.mark.parametrize("split", [[6], [3, 3], [1, 5], [6, 0], [0, 2, 4], [1, 1, 1, 1, 1, 1]])
def test_the_gate_is_the_same_for_any_split_of_a_step_over_ranks(split, synthetic):
    good = torch.tensor([1.0, 6.0, 3.0, 2.0, 4.0, 5.0])
    synthetic, changed = torch.tensor(synthetic), torch.tensor([True] * 5 + [False])
    whole = gate(good, synthetic, changed, 1e5, Alone())
    parts = [part.split(split) for part in (good, synthetic, changed)]

    def program(group):
        return gate(*(part[group.rank] for part in parts), 1e5, group)

    found = together(len(split), program)
    assert {part.pushed for part in found} == {whole.pushed}
    of_good, of_synthetic = zip(
        *(part.weights.chunk(2) for part in found if len(part.weights)), strict=True
    )
    torch.testing.assert_close(torch.cat([*of_good, *of_synthetic]), whole.weights)


def test_the_bound_of_the_gate_is_scaled_by_elements_and_0_is_none(backbone, images):
    pushed = []
    for max_nll in (1e-9, 0.0, 1e9):
        detector = new(backbone, images, max_nll=max_nll)
        pushed.append(detector.fit(Alone(), no_progress, Checkpoint()).fit_metrics["pushed"])
    assert pushed[0] == 0
    assert pushed[1] == pushed[2] > 0


def test_a_joint_density_grows_worse_with_one_channel_and_that_of_channels_does_not(backbone):
    latent = torch.zeros(1, 4, 1, 2)
    latent[0, 0, 0] = torch.tensor([6.0, 12.0])
    by_channels = Ssnf(SsnfSettings(**SMALL), backbone).density(latent)
    joint = Ssnf(SsnfSettings(**SMALL, density="joint"), backbone).density(latent)
    torch.testing.assert_close(by_channels, torch.full((1, 1, 2), 0.75), atol=1e-7, rtol=0)
    torch.testing.assert_close(joint[0, 0], torch.tensor([-36.0 / 8, -144.0 / 8]).exp())


def test_every_synthetic_image_follows_from_seed_epoch_and_number_alone(backbone, images):
    whole = new(backbone, images)
    whole.prepare(torch.nn.Identity(), Alone())

    def program(group):
        mine = [row for row in range(5) if row % 2 == group.rank]
        half = Ssnf(SsnfSettings(**SMALL), backbone)
        half.add_images(images[mine], torch.tensor(mine))
        half.prepare(torch.nn.Identity(), group)
        return {row: half.synthetic(half._samples[row], row, 1) for row in mine}

    for made in together(2, program):
        for row, found in made.items():
            expected = whole.synthetic(whole._samples[row], row, 1)
            assert (found.picture == expected.picture).all()
            assert (found.mask == expected.mask).all()
    one, next_ = (whole.synthetic(whole._samples[0], 0, epoch) for epoch in (1, 2))
    assert (one.picture != next_.picture).any()


def test_patches_come_from_another_image_unless_there_is_none(backbone):
    plain = torch.zeros(2, 3, 64, 64)
    plain[1, :, ::2] = 1
    detector = new(backbone, plain)
    detector.prepare(torch.nn.Identity(), Alone())
    striped = detector.synthetic(detector._samples[0], 0, 0)
    assert np.ptp(striped.picture) > 0.2  # stripes of the other one
    single = new(backbone, plain[1:])
    single.prepare(torch.nn.Identity(), Alone())
    assert single.synthetic(single._samples[0], 0, 0).mask.any()


def test_fewer_sources_can_be_held_and_are_the_same_on_every_rank(backbone, images):
    def program(group):
        mine = [row for row in range(5) if row % 2 == group.rank]
        half = Ssnf(SsnfSettings(**SMALL, sources=2), backbone)
        half.add_images(images[mine], torch.tensor(mine))
        half.prepare(torch.nn.Identity(), group)
        return list(half._sources)

    one, other = together(2, program)
    assert one == other
    assert len(one) == 2


def test_shared_samples_arrive_unchanged_on_every_rank(images):
    samples = {row: to_uint16(image) for row, image in enumerate(images)}

    def program(group):
        mine = {row: s for row, s in samples.items() if row % 2 == group.rank}
        return share_samples(mine, [0, 1, 4], group)

    for found in together(3, program):  # the third has none
        assert list(found) == [0, 1, 4]
        for row, sample in found.items():
            assert (sample.int() == samples[row].int()).all()


def test_the_cosine_is_that_of_torchs_scheduler(backbone):
    detector = Ssnf(SsnfSettings(turn=4, lr=1.0, lowest_lr=0.2), backbone)
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 4, 0.2)
    for epoch in range(10):
        assert detector.learning_rate(epoch) == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()


def test_a_map_is_the_mean_of_densities_and_the_score_its_maximum(backbone, images):
    detector = new(backbone, images)
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    found = detector.score(images[:1])
    with torch.no_grad():
        latents = [latent for latent, _ in detector.network.latents(backbone(images[:1]))]
    normal = torch.distributions.Normal(0.0, 1.0)
    layers = [-normal.log_prob(z.double()).exp().mean(dim=1, keepdim=True) for z in latents]
    large = [torch.nn.functional.interpolate(m, size=(64, 64), mode="bilinear") for m in layers]
    papers = (sum(large) / len(large))[0, 0]
    highest = 1 / np.sqrt(2 * np.pi)
    torch.testing.assert_close(-(-found.map[0].double()).exp() * highest, papers, rtol=1e-5, atol=0)
    assert float(found.image[0]) == float(found.map.max())


def test_a_fit_reports_pushed_images_and_a_contact_sheet(backbone, images):
    fit = new(backbone, images).fit(Alone(), lambda *_: None, Checkpoint())
    assert 0 < fit.fit_metrics["pushed"] <= 5
    assert fit.pictures["synthetic"].startswith(b"\x89PNG")
    fit = new(backbone, images, synthetic=False).fit(Alone(), lambda *_: None, Checkpoint())
    assert not fit.pictures
    assert "pushed" not in fit.fit_metrics


def test_prefetching_threads_change_no_result():
    def make(key):
        return key, threading.get_ident()

    for threads in (0, 1, 3):
        made = list(prefetch(make, range(20), threads, 4))
        assert [key for key, _ in made] == list(range(20))
        assert (threading.get_ident() in {by for _, by in made}) is (threads == 0)


def test_prefetching_keeps_its_depth():
    made = []
    stream = prefetch(made.append, range(20), 2, 5)
    for consumed in range(1, 6):
        next(stream)
        assert len(made) < consumed + 5
    stream.close()
    assert len(made) < 20


def test_an_error_in_a_thread_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda key: 1 / key, [1, 0], 1, 2))


def test_the_estimate_is_what_a_fit_takes(backbone, images):
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    for dropout in (0.0, 0.2):
        detector = new(backbone, images[:3], dropout=dropout, hidden=8)
        estimate = Ssnf.estimate(detector.settings, FitSize(64, shapes, 3, 1))
        detector._generators.per_image = [torch.Generator() for _ in range(6)]
        kept = kept_bytes(
            detector.new_network(), detector.features(torch.cat([images[:3], images[:3]]))
        )
        weights = list(detector.new_network().parameters())
        assert estimate.model_bytes == sum(4 * p.numel() for p in weights)
        trained = sum(4 * p.numel() for p in weights if p.requires_grad)
        activations = estimate.fit_bytes - 6 * trained - 2 * (estimate.model_bytes - trained)
        activations -= 2 * 3 * 2 * 3 * 64 * 64  # the images, and as many sources
        assert kept <= activations <= 1.6 * kept


def test_layers_of_a_subnet_are_a_list(backbone):
    assert SsnfSettings(stack="attn, conv,attn").layers == ["attn", "conv", "attn"]
    with pytest.raises(UserError, match="unknown subnet layers"):
        SsnfSettings(stack="conv,mlp")


def test_rules_of_defects_are_those_of_the_product_or_the_category(backbone, images, monkeypatch):
    categories = []
    rules_for = Ssnf.synthetic.__globals__["rules_for"]
    monkeypatch.setitem(
        Ssnf.synthetic.__globals__,
        "rules_for",
        lambda name: categories.append(name) or rules_for(name),
    )
    for category in ("", "grid"):
        detector = new(backbone, images, category=category)
        detector.product = "carpet"
        detector.prepare(torch.nn.Identity(), Alone())
        detector.synthetic(detector._samples[0], 0, 0)
    assert categories == ["carpet", "grid"]
