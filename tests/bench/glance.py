"""Glance at 256 px with windows of 64 px every 4 px, against one pass of both networks per window.

`python -m tests.bench glance`; `make bench` does not run it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ops.archives.fetch import FetchSettings
from ops.detectors.detector import Checkpoint
from ops.detectors.glance.detector import Glance
from ops.detectors.glance.global_net import inconsistency
from ops.detectors.glance.score_windows import average_map, window_scores
from ops.detectors.glance.settings import GlanceSettings
from ops.detectors.image_batches import to_images
from ops.distributed import Alone
from ops.features.backbone import Backbone, BackboneSettings
from ops.images.decode import DecodeSettings
from ops.images.read_images import Read
from ops.images.resize import InputSettings
from tests.bench import features
from tests.bench.measure import Row, Time, ratio, timed

INPUT = InputSettings(size=256, fit="squash")
#: A short fit. Weights do not change times, except those with a tolerance.
FIT = GlanceSettings(epochs=3, local_epochs=3, batch=8, lr=3e-4, validation_images=2)
SCORE = replace(FIT, stride=4)
IMAGES = 24
#: Windows that the loop over windows is timed on.
SAMPLE = 24
TOLERANCES = (0.005, 0.02)


@functools.cache
def images() -> Tensor:
    """Images (IMAGES + 1, 3, H, W): those to fit on, and one to score."""
    read = Read(INPUT, DecodeSettings(), FetchSettings(), threads=1)
    return to_images(read(features.rows_of(features.images()[: IMAGES + 1])), INPUT, "cpu")


def fitted(backbone: Backbone) -> Glance:
    """A fitted detector with windows every 4 px."""
    detector = Glance(FIT, backbone)
    detector.add_images(images()[:IMAGES], torch.arange(IMAGES))
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    finer = Glance(SCORE, backbone)
    finer.load_state(detector.state())
    return finer


@torch.inference_mode()
def plain(detector: Glance, pixels: Tensor, numbers: list[int], columns: int) -> Tensor:
    """Scores of some windows, computed one by one."""
    s, network, out = detector.settings, detector.network, []
    for number in numbers:
        y, x = number // columns * s.stride, number % columns * s.stride
        mask = torch.ones(1, 1, *pixels.shape[2:])
        mask[:, :, y : y + s.patch, x : x + s.patch] = 0
        local = network.local(pixels[:, :, y : y + s.patch, x : x + s.patch])
        around = network.around(pixels, mask)
        distorted = torch.sigmoid(-network.head(local, around))
        disagreeing = inconsistency(local, around) / network.scale
        out.append(s.inconsistency * disagreeing + (1 - s.inconsistency) * distorted)
    return torch.cat(out)


def rows() -> Iterator[Row]:
    """SqueezeNet, and ResNet-18 as in the paper, with random weights."""
    yield from _rows("SqueezeNet", features.backbone("features.7,features.12"), TOLERANCES)
    resnet = Backbone(BackboneSettings("resnet18", "layer4", "random"))
    yield from _rows("ResNet-18, random weights", resnet, TOLERANCES[1:])


def _rows(name: str, backbone: Backbone, tolerances: tuple[float, ...]) -> Iterator[Row]:
    detector = fitted(backbone)
    s, network = detector.settings, detector.network
    pixels = detector._pixels(images()[IMAGES])
    columns = s.grid.count(INPUT.sides[0])
    count = columns**2
    numbers = list(range(0, count, count // SAMPLE))[:SAMPLE]
    results: dict[float, Tensor] = {}

    @torch.inference_mode()
    def ours(tolerance: float) -> None:
        results[tolerance] = window_scores(network, pixels, s.grid, s.inconsistency, tolerance)

    plain(detector, pixels, numbers[:2], columns)
    of_sample = timed(lambda: plain(detector, pixels, numbers, columns), 3)
    slow = of_sample.times(count / SAMPLE)
    expected = plain(detector, pixels, numbers, columns)
    full = timed(lambda: ours(0.0), 3)
    difference = float((results[0.0].flatten()[numbers] - expected).abs().max() / expected.max())
    yield Row(f"Glance, {name}, {count:,} windows of an image, one pass per window", "", slow)
    note = f"scores of {SAMPLE} windows differ by {difference:.0e} of the largest"
    yield Row(
        "  every window, computed where it changes something", ratio(slow, full), full, "", note
    )
    local = timed(lambda: _local(detector, pixels), 3)
    yield Row("  of which Local-Net, over the whole image", f"{local.cpu / full.cpu:.1%}", local)
    largest = results[0.0].max()
    maps = {0.0: _map_of(detector, results[0.0])}
    for tolerance in tolerances:
        fast: Time = timed(lambda: ours(tolerance), 3)  # noqa: B023
        maps[tolerance] = _map_of(detector, results[tolerance])
        window = float((results[tolerance] - results[0.0]).abs().max())
        pixel = float((maps[tolerance] - maps[0.0]).abs().max())
        note = (
            f"windows differ by at most {window:.3f} of {largest:.3f}, the map by {pixel:.4f} "
            f"of {float(maps[0.0].max()):.3f}"
        )
        what = f"  from coarse to fine, tolerance {tolerance}"
        yield Row(what, ratio(slow, fast), fast, "8 x", note)


@torch.inference_mode()
def _local(detector: Glance, pixels: Tensor) -> None:
    detector.network.local.dense(pixels, detector.settings.stride)


def _map_of(detector: Glance, scored: Tensor) -> Tensor:
    return average_map(scored, detector.settings.grid)
