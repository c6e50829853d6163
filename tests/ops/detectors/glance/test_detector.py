"""Glance against its definition, computed one window at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ops.detectors.detector import Checkpoint
from ops.detectors.fit_cost import FitSize
from ops.detectors.glance.detector import Glance
from ops.detectors.glance.global_net import GlanceNetwork
from ops.detectors.glance.local_net import Distillation
from ops.detectors.glance.score_windows import Grid, inconsistencies
from ops.detectors.glance.settings import GlanceSettings
from ops.detectors.glance.training_patches import gather_stain_sources
from ops.detectors.glance.usual_scores import UsualScores
from ops.detectors.uint16_images import to_uint16
from ops.distributed import Alone, Group
from ops.errors import UserError
from ops.features.backbone import Backbone
from tests import pictures
from tests.ops.detectors.test_trained import RecordedCheckpoint, no_progress
from tests.ops.threads import together

SMALL = GlanceSettings(
    patch=16,
    stride=8,
    width=4,
    dim=8,
    epochs=2,
    local_epochs=2,
    batch=4,
    lr=2e-3,
    validation_images=1,
)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return drawn_images(range(5))


def drawn_images(seeds: Iterable[int]) -> Tensor:
    drawn = [torch.from_numpy(pictures.texture(seed, colour=True)) for seed in seeds]
    return torch.stack(drawn).permute(0, 3, 1, 2).float() / 255


def with_images(backbone: Backbone, images: Tensor, rows=range(5), **changes) -> Glance:
    detector = Glance(replace(SMALL, **changes), backbone)
    for row in rows:
        detector.add_images(images[[row]], torch.tensor([row]))
    return detector


@pytest.fixture(scope="module")
def fitted(backbone, images):
    """A fitted detector, and what its fit returned."""
    detector = with_images(backbone, images)
    return detector, detector.fit(Alone(), no_progress, Checkpoint())


def windows(detector: Glance, image: Tensor) -> Tensor:
    """Scores of all windows as the paper defines them: one pass of both networks for each."""
    s, network = detector.settings, detector.network
    pixels = detector.backbone.normalised(image[None])
    count = (image.shape[1] - s.patch) // s.stride + 1
    out = torch.empty(count, count)
    with torch.inference_mode():
        for row in range(count):
            for column in range(count):
                y, x = row * s.stride, column * s.stride
                mask = torch.ones(1, 1, *image.shape[1:])
                mask[:, :, y : y + s.patch, x : x + s.patch] = 0
                local = network.local(pixels[:, :, y : y + s.patch, x : x + s.patch])
                predicted = network.around(pixels, mask)
                clean = torch.sigmoid(network.head(local, predicted))
                s_iad = (local - predicted).square().mean() / network.scale
                out[row, column] = s.inconsistency * s_iad + (1 - s.inconsistency) * (1 - clean)
    return out


def mean_over_windows(scores: Tensor, cells: int) -> Tensor:
    side = len(scores) + cells - 1
    total, count = torch.zeros(side, side), torch.zeros(side, side)
    for row in range(len(scores)):
        for column in range(len(scores)):
            covered = (slice(row, row + cells), slice(column, column + cells))
            total[covered] += scores[row, column]
            count[covered] += 1
    return total / count


def test_a_pixel_of_the_map_is_the_mean_over_the_windows_that_cover_it(fitted, images):
    detector, _ = fitted
    scores = detector.score(images[:1])
    network = detector.network
    expected = mean_over_windows(compared(network.usual_windows, windows(detector, images[0])), 2)
    expected = compared(network.usual_cells, expected)
    assert scores.map.shape == (1, 8, 8)
    torch.testing.assert_close(scores.map[0], expected, rtol=1e-4, atol=1e-5)
    assert scores.image[0] == scores.map.max()


def compared(usual: UsualScores, scores: Tensor) -> Tensor:
    """By the definition: as many typical spreads above the mean level as at the place itself."""
    spreads_above = (scores - usual.mean) / usual.spread
    return usual.mean.mean() + spreads_above * usual.spread.square().mean().sqrt()


def test_good_images_have_their_maxima_anywhere_and_not_at_the_border(backbone):
    good = drawn_images(range(9))
    detector = with_images(backbone, good, range(9), validation_images=9)
    detector.fit(Alone(), no_progress, Checkpoint())
    raw = Glance(replace(SMALL, places="raw"), backbone)
    raw.load_state(detector.state())
    for usual in (raw.network.usual_windows, raw.network.usual_cells):
        usual.load_state_dict(UsualScores(usual.mean.shape).state_dict())
    others = drawn_images(range(100, 112))
    border = torch.ones(8, 8, dtype=torch.bool)
    border[1:-1, 1:-1] = False  # 28 of 64 cells
    assert int(border.sum()) == 28
    at_border = [
        sum(bool(border.flatten()[m.argmax()]) for m in scored.score(others).map)
        for scored in (raw, detector)
    ]
    assert at_border[0] >= 10
    assert at_border[1] <= 7


def test_raw_places_are_left_as_they_are(backbone, images):
    detector = with_images(backbone, images, places="raw")
    detector.fit(Alone(), no_progress, Checkpoint())
    expected = mean_over_windows(windows(detector, images[0]), 2)
    torch.testing.assert_close(detector.score(images[:1]).map[0], expected, rtol=1e-5, atol=1e-5)


def test_a_saved_detector_scores_the_same_bits_alone_and_in_a_batch(fitted, backbone, images):
    detector, _ = fitted
    loaded = Glance(SMALL, backbone)
    loaded.load_state({name: value.clone() for name, value in detector.state().items()})
    assert "usual_cells.spread" in detector.state()
    batch = detector.score(images[:3])
    for number in range(3):
        alone = loaded.score(images[number : number + 1])
        assert torch.equal(alone.map[0], batch.map[number])
        assert torch.equal(alone.image[0], batch.image[number])


def test_a_state_without_usual_scores_is_refused(fitted, backbone):
    detector, _ = fitted
    state = {name: v for name, v in detector.state().items() if not name.startswith("usual")}
    with pytest.raises(UserError, match="does not hold what good images get at each place; fit it"):
        Glance(SMALL, backbone).load_state(state)


@pytest.mark.parametrize("good", [True, False])
def test_interpolation_changes_the_map_by_at_most_3_percent_of_its_maximum(fitted, backbone, good):
    detector, _ = fitted
    drawn = pictures.texture(8)
    drawn = drawn if good else pictures.with_blob(drawn, 40, 24)
    image = (torch.from_numpy(drawn) / 255).expand(1, 3, -1, -1)
    maps = []
    for tolerance in (0.0, 0.03):
        other = Glance(replace(SMALL, stride=4, tolerance=tolerance), backbone)
        other.load_state(detector.state())
        maps.append(other.score(image).map)
    assert not torch.equal(*maps)
    torch.testing.assert_close(*maps, rtol=0, atol=0.03 * float(maps[0].max()))


def test_a_fit_resumed_in_either_stage_ends_like_an_uninterrupted_one(fitted, backbone, images):
    detector, fit = fitted
    for stage in ("local", "train"):
        checkpoint = RecordedCheckpoint()

        def interrupt(name, done, total, stage=stage):
            if (name, done) == (stage, 2):
                raise InterruptedError

        with pytest.raises(InterruptedError):
            with_images(backbone, images).fit(Alone(), interrupt, checkpoint)
        again = with_images(backbone, images)
        assert again.fit(Alone(), no_progress, checkpoint).curves == fit.curves
        for key, value in detector.state().items():
            assert torch.equal(again.state()[key], value), key


def test_a_fit_can_resume_on_two_workers(fitted, backbone, images):
    detector, fit = fitted
    checkpoint = RecordedCheckpoint()

    def interrupt(name, done, total):
        if (name, done) == ("local", 2):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        with_images(backbone, images).fit(Alone(), interrupt, checkpoint)
    halves = [with_images(backbone, images, rows) for rows in (range(0, 5, 2), range(1, 5, 2))]

    def program(group: Group):
        return halves[group.rank].fit(group, no_progress, checkpoint)

    for result in together(2, program):
        for name, curve in fit.curves.items():
            assert result.curves[name] == pytest.approx(curve, rel=1e-4)
    for key, value in detector.state().items():
        torch.testing.assert_close(halves[0].state()[key], value, rtol=1e-4, atol=1e-4)


def test_gradients_reach_what_a_stage_trains_and_nothing_else(backbone, images):
    detector = with_images(backbone, images)
    samples = list(detector._samples.items())
    for stage in detector.stages():
        detector.network = stage.network
        detector.prepare(stage.network, Alone())
        stage.network(detector.inputs(samples, 0)).mean().backward()
        reached = {name for name, p in stage.network.named_parameters() if p.grad is not None}
        trained = {name for name, p in stage.network.named_parameters() if p.requires_grad}
        assert reached == trained
        assert all(p.grad.abs().max() > 0 for p in stage.network.parameters() if p.requires_grad)
        if isinstance(stage.network, GlanceNetwork):
            assert not [name for name in trained if name.startswith("local")]
        stage.network.zero_grad(set_to_none=True)


def test_teacher_features_are_standardised_and_patches_follow_from_the_seed(backbone, images):
    detector = with_images(backbone, images)
    stage = next(detector.stages())
    detector.network = stage.network
    detector.prepare(stage.network, Alone())
    assert isinstance(stage.network, Distillation)
    assert float(stage.network.std.min()) > 0
    samples = [(row, to_uint16(image)) for row, image in enumerate(images)]
    one, same, next_ = (detector.inputs(samples, epoch) for epoch in (0, 0, 1))
    assert torch.equal(one.patches, same.patches)
    assert not torch.equal(one.patches, next_.patches)
    teacher = torch.cat([layer.mean(dim=(2, 3)) for layer in backbone(_pixels(one, backbone))], 1)
    torch.testing.assert_close(one.teacher_features, teacher, rtol=1e-3, atol=1e-4)


def _pixels(batch, backbone):
    zero = backbone.normalised(torch.zeros(1, 3, 1, 1))
    return (batch.patches - zero) / (backbone.normalised(torch.ones(1, 3, 1, 1)) - zero)


def test_stain_sources_are_equal_on_every_rank_and_never_of_the_stained_image(backbone, images):
    halves = [with_images(backbone, images, rows) for rows in ([1, 3], [0, 2, 4])]

    def program(group: Group):
        return gather_stain_sources(halves[group.rank]._samples, 16, halves[0].generator, group)

    one, other = together(2, program)
    assert list(one) == list(other) == [0, 1, 2, 3, 4]
    assert all(torch.equal(one[row], other[row]) for row in one)
    detector = with_images(backbone, images)
    detector._stain_sources = one
    assert len(detector._stain_sources_for(2)) == 4
    assert not any(torch.equal(one[2], snippet) for snippet in detector._stain_sources_for(2))
    detector._stain_sources = {2: one[2]}
    assert len(detector._stain_sources_for(2)) == 1


def test_validation_images_are_kept_out_of_training(backbone):
    detector = Glance(replace(SMALL, validation_images=3), backbone)
    rows = torch.arange(100, 150)
    trained = detector.training_rows(rows)
    assert len(detector._validation_rows) == 3
    assert sorted([*trained.tolist(), *detector._validation_rows]) == rows.tolist()
    assert detector.training_rows(rows[:5]).tolist() == rows[:5].tolist()
    assert len(detector._validation_rows) == 3


def test_the_scale_is_the_quantile_of_inconsistency_on_validation_images(fitted, backbone, images):
    detector, _ = fitted
    raw = with_images(backbone, images, scale="raw")
    raw.fit(Alone(), no_progress, Checkpoint())
    assert raw.network.scale == 1
    (row,) = detector._validation_rows
    with torch.inference_mode():
        values = inconsistencies(raw.network, raw._pixels(images[row]), Grid(16, 8))
    assert float(detector.network.scale) == pytest.approx(float(values.quantile(0.99)), rel=1e-3)


def test_windows_that_cannot_cover_an_image_are_refused(backbone, images):
    with pytest.raises(UserError, match="stride 5 must divide patch 16"):
        replace(SMALL, stride=5)
    fit_size = FitSize(60, [(8, 15, 15)], 5, 1, backbone)
    with pytest.raises(
        UserError, match="16 pixels with stride 8 do not cover an input of 60 pixels"
    ):
        Glance.estimate(SMALL, fit_size)
    with pytest.raises(UserError, match="do not cover an input of 12 pixels"):
        with_images(backbone, images[..., :12, :12])


def test_a_patch_too_small_for_the_teacher_is_refused_before_a_fit(backbone):
    fit_size = FitSize(64, [(8, 15, 15)], 5, 1, backbone)
    with pytest.raises(UserError, match=r"4 pixels is too small .* of squeezenet1_1; choose a l"):
        Glance.estimate(replace(SMALL, patch=4, stride=4), fit_size)


def test_the_estimate_is_what_a_fit_takes(fitted, backbone, images):
    detector, _ = fitted
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    fit_size = FitSize(64, shapes, 6, 2, backbone)
    estimate = Glance.estimate(SMALL, fit_size)
    tensors = detector.state().values()
    assert estimate.model_bytes == pytest.approx(sum(4 * t.numel() for t in tensors), rel=1e-3)
    assert estimate.vectors == 6 * 49
    timing_probe = Glance.timing_probe(SMALL, fit_size)
    timing_probe.work()
    assert timing_probe.times == 2 * 6 / 2
