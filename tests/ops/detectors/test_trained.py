"""Training: every image once an epoch, and resuming after an interruption."""

from __future__ import annotations

import pytest
import torch

from ops.detectors.cflow import CFlow
from ops.detectors.csflow import CsFlow
from ops.detectors.detector import Checkpoint
from ops.detectors.differnet import DifferNet
from ops.detectors.fastflow import FastFlow
from ops.detectors.ssnf import Ssnf
from ops.detectors.uint16_images import from_uint16, to_uint16
from ops.distributed import Alone, Group
from ops.errors import UserError
from tests.ops.threads import together

SMALL = {
    DifferNet: {
        "blocks": 2,
        "hidden": 16,
        "scales": 1,
        "views": 4,
        "transforms": 2,
        "epochs": 3,
        "batch": 3,
        "score_transforms": 2,
        "maps": "none",
    },
    CFlow: {
        "blocks": 1,
        "condition": 8,
        "mixing": "hard",
        "epochs": 3,
        "batch": 4,
        "fibers": 256,
        "warmup": 2,
    },
    CsFlow: {"scales": 2, "blocks": 1, "hidden": 2, "epochs": 3, "batch": 4},
    FastFlow: {"blocks": 1, "hidden": 0.1, "epochs": 3, "batch": 4},
    Ssnf: {
        "blocks": 1,
        "hidden": 4,
        "heads": 1,
        "stack": "conv",
        "epochs": 3,
        "batch": 4,
        "max_nll": 1e9,
    },
}

every_kind = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.name)
#: Without CS-Flow, whose training differs from FastFlow's in nothing but time.
kinds_of_training = pytest.mark.parametrize(
    "kind", [DifferNet, FastFlow, CFlow, Ssnf], ids=lambda kind: kind.name
)


class RecordedCheckpoint(Checkpoint):
    """A checkpoint that keeps everything written in a list."""

    def __init__(self):
        self.written = []

    def read(self):
        return self.written[-1] if self.written else None

    def write(self, content):
        self.written.append(content)


@pytest.fixture(scope="module")
def images():
    return torch.rand(7, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def with_images(backbone, images, rows=range(7), kind=DifferNet, **settings):
    detector = kind(kind.Settings(**SMALL[kind] | settings), backbone)
    rows = list(rows)
    if rows:
        detector.add_images(images[rows], torch.tensor(rows))
    return detector


def no_progress(*_):
    """Ignores progress."""


def test_an_epoch_takes_every_image_once_in_a_new_order(backbone, images):
    detector = with_images(backbone, images)
    rows = torch.arange(100, 200)
    epochs = [[row for batch in detector.batches(rows, epoch) for row in batch] for epoch in (0, 1)]
    assert [sorted(epoch) for epoch in epochs] == [rows.tolist()] * 2
    assert epochs[0] != epochs[1]
    assert [len(batch) for batch in detector.batches(rows, 0)] == [3] * 33 + [1]


def test_the_loss_falls_and_is_reported_for_every_epoch(backbone, images):
    fit = with_images(backbone, images, epochs=20, lr=3e-3).fit(Alone(), no_progress, Checkpoint())
    curve = fit.curves["loss"]
    assert len(curve) == 20
    assert curve[-1] < curve[0]
    assert fit.fit_metrics["loss"] == curve[-1]


def test_the_first_loss_is_the_mean_over_all_views_of_all_images(backbone, images):
    """With a single step, all losses are those of the initial weights."""
    detector = with_images(backbone, images, epochs=1, batch=7)
    network = detector.new_network()
    samples = [(row, detector._samples[row]) for row in range(7)]
    detector.network = network
    expected = float(network(detector.inputs(samples, 0)).mean().detach())
    curve = detector.fit(Alone(), no_progress, Checkpoint()).curves["loss"]
    assert curve == [pytest.approx(expected, rel=1e-6)]


@kinds_of_training
def test_a_resumed_fit_ends_like_an_uninterrupted_one(kind, backbone, images):
    uninterrupted = with_images(backbone, images, kind=kind)
    curve = uninterrupted.fit(Alone(), no_progress, Checkpoint()).curves["loss"]

    def interrupt(stage, done, total):
        if done == 2:
            raise InterruptedError

    checkpoint = RecordedCheckpoint()
    with pytest.raises(InterruptedError):
        with_images(backbone, images, kind=kind).fit(Alone(), interrupt, checkpoint)
    assert len(checkpoint.written) == 1
    again = with_images(backbone, images, kind=kind)
    assert again.fit(Alone(), no_progress, checkpoint).curves["loss"] == curve
    assert len(checkpoint.written) == 3
    for key, value in uninterrupted.state().items():
        assert torch.equal(again.state()[key], value)


@kinds_of_training
def test_a_fit_can_resume_on_another_number_of_workers(kind, backbone, images):
    curve = (
        with_images(backbone, images, kind=kind)
        .fit(Alone(), no_progress, Checkpoint())
        .curves["loss"]
    )
    checkpoint = RecordedCheckpoint()
    with pytest.raises(InterruptedError):
        with_images(backbone, images, kind=kind).fit(Alone(), _interrupt_after(1), checkpoint)
    halves = [
        with_images(backbone, images, rows, kind) for rows in (range(0, 7, 2), range(1, 7, 2))
    ]

    def program(group: Group):
        return halves[group.rank].fit(group, no_progress, checkpoint).curves["loss"]

    for resumed in together(2, program):
        assert resumed == pytest.approx(curve, rel=1e-4)


def _interrupt_after(epoch):
    def progress(stage, done, total):
        if done > epoch:
            raise InterruptedError

    return progress


@every_kind
def test_gradients_reach_every_weight(kind, backbone, images):
    detector = with_images(backbone, images, kind=kind)
    network = detector.new_network().train()
    detector.network = network
    detector.prepare(network, Alone())
    detector.begin_epoch(0, list(range(7)))
    samples = [(row, detector._samples[row]) for row in range(7)]
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.fill_(0.1)  # a factor of 0 blocks the gradients of layers before it
    sum(network(part).mean() for part in detector.steps(samples, 0, 7)).backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert trained
    for name, weight in trained.items():
        assert weight.grad is not None, name
        assert float(weight.grad.abs().max()) > 0, name


def test_a_loss_that_is_not_finite_ends_the_fit_and_names_the_setting(backbone, images):
    with pytest.raises(
        UserError, match=r"the loss of epoch \d+ is (nan|inf); .* \(--differnet.lr\)"
    ):
        with_images(backbone, images, lr=1e12, epochs=20).fit(Alone(), no_progress, Checkpoint())


@pytest.mark.parametrize("levels", [255, 65535])
def test_images_are_kept_without_loss(levels):
    values = torch.randint(0, levels + 1, (3, 8, 8)).float() / levels
    for image, channels in ((values, 3), (values[:1].expand(3, -1, -1), 1)):
        stored = to_uint16(image)
        assert len(stored) == channels
        torch.testing.assert_close(from_uint16(stored), image, rtol=0, atol=1e-7)
