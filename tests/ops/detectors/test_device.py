"""Every detector on a pretend CUDA device: its rules, and launches and syncs of a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from ops.detectors import image_batches
from ops.detectors.detector import Checkpoint, Detector, FitCounts, Scores, settings_from
from ops.distributed import Alone
from ops.errors import UserError
from ops.features.backbone import Backbone
from ops.images.resize import InputSettings
from tests import pictures
from tests.ops.conftest import TINY
from tests.ops.detectors.test_contract import NAMES, SMALL, kind_of, to_images
from tests.pretend_device import CUDA, PretendDevice

#: Changes of the contract's settings that make a fit shorter.
SHORTER: dict[str, dict[str, object]] = {
    "differnet": {"views": 2, "epochs": 1},
    "fastflow": {"epochs": 1},
    "cflow": {"epochs": 1},
    "cflow whitened": {"epochs": 1},
    "glance": {"epochs": 1, "local_epochs": 1, "batch": 2, "stride": 16, "tolerance": 0.0},
}
#: The most launches and syncs of a batch of six images, in passes of four, of a loaded detector.
#: The copy of the scores to the CPU comes after them.
LIMITS = {
    "patchcore": (200, 1),
    "patchcore whitened": (215, 1),
    "spade": (1400, 24),
    "padim": (80, 1),
    "differnet": (2100, 0),
    "fastflow": (280, 0),
    "cflow": (220, 0),
    "cflow whitened": (250, 0),
    "csflow": (300, 0),
    "ssnf": (360, 0),
    "glance": (4850, 24),
}
GROWING = {"patchcore", "spade"}
BLOCK = 4


@pytest.fixture(scope="module")
def good() -> Tensor:
    return to_images([pictures.texture(seed) for seed in range(4)])


@pytest.fixture(scope="module")
def unseen() -> Tensor:
    return to_images([pictures.texture(seed) for seed in range(100, 106)])


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return Backbone(TINY).state()


def new(name: str, weights: dict[str, Tensor], device: str, block: int = BLOCK) -> Detector:
    kind = kind_of(name)
    values = SMALL.get(name, {}) | SHORTER.get(name, {})
    backbone = Backbone(replace(TINY, block=block), weights, device)
    return kind(settings_from(kind.Settings, values), backbone)


def fit(detector: Detector, images: Tensor, first: int = 0) -> tuple[dict[str, Tensor], FitCounts]:
    """Fit on batches of two; the state as it is saved, and the counts."""
    for start in range(0, len(images), 2):
        part = images[start : start + 2].to(detector.backbone.device)
        detector.add_images(part, torch.arange(first + start, first + start + len(part)))
        detector.exchange(Alone())
    counts = detector.fit(Alone(), lambda *_: None, Checkpoint()).counts
    return {key: tensor.cpu().clone() for key, tensor in detector.state().items()}, counts


def on_cpu(scores: Scores) -> Scores:
    return Scores(*(values.detach().cpu() for values in scores))


@pytest.mark.parametrize("exposure", ["as_is", "standard"])
def test_pixels_go_to_the_device_from_pinned_memory_without_waiting(exposure):
    """Grey and colour, 8 and 16 bits in one batch; each kind is copied and normalised at once."""
    rng = np.random.default_rng(0)
    kinds = [(1, 8), (3, 8), (1, 8), (3, 16)]
    pixels = [
        rng.integers(0, 2**depth, (16, 16, channels)).astype(f"<u{depth // 8}")
        for channels, depth in kinds
    ]
    rows = pa.table(
        {
            "pixels": pa.array([image.tobytes() for image in pixels], pa.large_binary()),
            "channels": [channels for channels, _ in kinds],
            "bit_depth": [depth for _, depth in kinds],
        }
    )
    settings = InputSettings(size=16, exposure=exposure)
    expected = image_batches.to_images(rows, settings, "cpu")
    with PretendDevice() as device:
        same_kind = image_batches.to_images(rows, settings, str(CUDA), [0, 2])
        assert device.syncs.total() == 0, device.syncs
        assert device.launches.total() <= 22, device.launches
        mixed = image_batches.to_images(rows, settings, str(CUDA))
        assert torch.equal(same_kind.cpu(), expected[[0, 2]])
        assert torch.equal(mixed.cpu(), expected)
    for image, (_, depth), found in zip(pixels, kinds, expected, strict=True):
        if exposure == "as_is":
            upright = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) / (2**depth - 1)
            assert torch.equal(found, upright.expand(3, -1, -1))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_detector_scores_on_the_device_as_on_the_cpu(name, good, unseen, weights):
    """Gather, fit, save and load; scores, launches and syncs of the loaded detector."""
    with PretendDevice() as device:
        state, _ = fit(new(name, weights, str(CUDA)), good)
        loaded = new(name, weights, str(CUDA))
        loaded.load_state(state)
        images = unseen.to(CUDA)
        loaded.score(images[:1])  # tables that are made once
        device.reset()
        scores = loaded.score(images)
        counts = device.launches.total(), device.syncs.total()
        found = on_cpu(scores)
    reference = new(name, weights, "cpu")
    reference.load_state(state)
    for ours, theirs in zip(found, reference.score(unseen), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    most = LIMITS[name]
    assert counts[0] <= most[0], device.launches.most_common(8)
    assert counts[1] <= most[1], device.syncs.most_common(8)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_detector_scores_on_the_device_after_its_fit_and_grows_there(name, good, unseen, weights):
    with PretendDevice():
        fitted = new(name, weights, str(CUDA))
        state, counts = fit(fitted, good)
        images = unseen[:2].to(CUDA)
        after_fit = on_cpu(fitted.score(images))
        loaded = new(name, weights, str(CUDA))
        loaded.load_state(state)
        for ours, theirs in zip(after_fit, on_cpu(loaded.score(images)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        grown = new(name, weights, str(CUDA))
        if name.split()[0] not in GROWING:
            with pytest.raises(UserError, match="cannot grow"):
                grown.grow(state, counts)
            return
        grown.grow(state, counts)
        _, counts = fit(grown, unseen, first=len(good))
        assert counts.images == len(good) + len(unseen)
        assert torch.isfinite(on_cpu(grown.score(images)).image).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("patchcore", 200), ("patchcore whitened", 270)])
def test_launches_and_syncs_of_a_large_batch_and_a_large_bank(name, most, good, weights):
    """A batch of 64 and a bank of 5,000: at most 300 launches and 3 syncs were wanted."""
    generator = torch.Generator().manual_seed(0)
    with PretendDevice() as device:
        state, _ = fit(new(name, weights, str(CUDA), block=32), good)
        rows = torch.randint(len(state["bank"]), (5000,), generator=generator)
        bank = state["bank"][rows]
        state["bank"] = bank + 0.01 * torch.randn(bank.shape, generator=generator)
        loaded = new(name, weights, str(CUDA), block=32)
        loaded.load_state(state)
        images = good.repeat(16, 1, 1, 1).to(CUDA)
        loaded.score(images[:1])  # tables that are made once
        device.reset()
        loaded.score(images)
    assert device.launches.total() <= most, device.launches.most_common(8)
    assert device.syncs.total() <= 3, device.syncs.most_common(8)
