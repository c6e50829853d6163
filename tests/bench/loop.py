"""Nights, decisions and growing on a folder of labelled images, in one process without Ray.

python -m tests.bench loop --data tiles --layout mtd --train-names train_names.txt \\
    --weights lite0.safetensors --exposure median

A model is fitted on about `--good` good images, of which the share `--holdout` calibrates it. All
others are dealt to `--nights` nights. Where parts are known, images of one part stay together, and
no model starts with a part of which an image is defective. After each night an inspector, who knows
the labels, looks at the parts that were flagged; the model grows by the false alarms among them,
and scores the next night, whose images it has never seen. Every night is also scored by the model
that never grows, and by one that differs from the rule of jobs.fit --labels: of its false alarms a
tenth calibrates. Nothing is chosen by labels of parts that were not flagged. Figures are means over
`--draws` random deals.

The second table grows the model by 1, 10 and 150 good images at random, of which a fifth calibrates
too, and scores good images that it has never seen.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ops.detectors.detector import Checkpoint, Detector, FitCounts
from ops.detectors.registry import detector_class
from ops.distributed import Alone
from ops.results.calibration import Calibration
from pipelines.fitting.hold_out import unit_of
from pipelines.fitting.request import FitRequest
from tests.bench.remembered import RememberingBackbone
from tests.bench.tile_images import Images
from tests.bench.tiles import listed, parser, request_of

Numbers = npt.NDArray[np.int64]
#: Names of the models, and the share of new false alarms that each calibrates on.
MODELS = {"never grown": None, "grown, all to the bank": 0.0, "grown, a tenth calibrates": 0.1}
NIGHTS = (
    "| night | model | calibrated on | promised | good: called anomalous | defective: missed |\n"
    + "|---" * 6
    + "|"
)
GROWN = "| grown by | calibrated on | promised | good: called anomalous |\n" + "|---" * 4 + "|"


class Model(NamedTuple):
    """A detector, and what calibrates it."""

    detector: Detector
    counts: FitCounts
    held_out: Numbers
    """Numbers of the images that calibrate it."""
    scores: npt.NDArray[np.float64]
    """Their scores."""
    calibration: Calibration
    """By part: images of a part count as one observation."""


class Night(NamedTuple):
    """What a model made of the images of a night."""

    calibrated: int
    promised: float
    false_alarms: float
    """Share of good images that were called anomalous."""
    missed: float
    """Share of defective ones that were not."""


@dataclass
class World:
    """All images, and how a model sees them."""

    request: FitRequest
    images: Images
    backbone: RememberingBackbone

    @classmethod
    def of(cls, chosen: argparse.Namespace) -> World:
        """The images and the preset of a command line. Raises SystemExit without a folder."""
        if not chosen.data.is_dir():
            raise SystemExit(f"{chosen.data} is no folder; --data takes the folder of the images")
        torch.set_num_threads(1)
        request = request_of(chosen.preset, chosen)
        images = Images.read(listed(chosen), request)
        return cls(request, images, RememberingBackbone(request.backbone))

    @functools.cached_property
    def units(self) -> list[Hashable]:
        """What each image is one observation of."""
        return [unit_of(row) for row in self.images.rows.to_pylist()]

    def dealt(self, deal: np.random.Generator) -> tuple[list[Numbers], list[Numbers]]:
        """The good images of each part, in random order: of good parts, and of defective ones."""
        numbers: dict[Hashable, list[int]] = {}
        for number, unit in enumerate(self.units):
            numbers.setdefault(unit, []).append(number)
        parts = [np.array(each) for each in numbers.values()]
        bad = self.images.labels
        good, defective = list[Numbers](), list[Numbers]()
        for part in (parts[at] for at in deal.permutation(len(parts))):
            (defective if bad[part].any() else good).append(part[~bad[part]])
        return good, [part for part in defective if len(part)]

    def fitted(self, fit: Numbers, held_out: Numbers, earlier: Model | None = None) -> Model:
        """A model of some images, or an earlier one grown by them."""
        detector = detector_class(self.request.method)(self.request.settings, self.backbone)
        if earlier:
            detector.grow(earlier.detector.state(), earlier.counts)
        for rows, batch in self._some(fit).batches():
            self.backbone.expect(batch)
            detector.add_images(batch, rows)
        counts = detector.fit(Alone(), lambda *_: None, Checkpoint()).counts
        scores = self.scores(detector, held_out)
        calibration = Calibration.of(scores.tolist(), [self.units[n] for n in held_out])
        return Model(detector, counts, held_out, scores, calibration)

    def scores(self, detector: Detector, images: Numbers) -> npt.NDArray[np.float64]:
        """The scores of some images."""
        scores: list[float] = []
        for _, batch in self._some(images).batches():
            self.backbone.expect(batch)
            scores += detector.score(batch).image.double().tolist()
        return np.array(scores)

    def _some(self, numbers: Numbers) -> Images:
        all_of = self.images
        return Images(
            [all_of.pixels[n] for n in numbers],
            [all_of.depths[n] for n in numbers],
            all_of.rows.take(pa.array(numbers)),
            all_of.input,
        )

    def night(self, model: Model, images: Numbers, rate: float) -> tuple[Night, Numbers]:
        """Score a night; returns its figures, and the images that an inspector calls good."""
        calibration, bad = model.calibration, self.images.labels[images]
        flagged = self.scores(model.detector, images) > calibration.threshold(rate)
        figures = Night(
            len(calibration.scores),
            calibration.promised_rate(rate) or 1.0,
            float(flagged[~bad].mean()),
            float((~flagged[bad]).mean()) if bad.any() else float("nan"),
        )
        return figures, images[flagged & ~bad]


def main(argv: Sequence[str]) -> int:
    """Print both tables."""
    own = parser("loop", __doc__)
    add = own.add_argument
    add("--preset", default="efficientnet-lite0", help="a name in deploy/methods")
    add("--good", type=int, default=100, help="good images of the first model")
    add("--holdout", type=float, default=0.2, help="share of them that calibrates it")
    add("--rate", type=float, default=0.05, help="the false-alarm rate that is asked for")
    add("--nights", type=int, default=3)
    add("--draws", type=int, default=10)
    add("--grow", type=int, nargs="*", default=[1, 10, 150], help="images of the second table")
    chosen = own.parse_args(argv)
    world = World.of(chosen)
    deals = [np.random.default_rng(draw) for draw in range(chosen.draws)]
    firsts, rests = [], []
    for deal in deals:
        good, others = world.dealt(deal)
        held, rest = taken([*good, *others], round(chosen.good * chosen.holdout))
        fit, rest = taken(rest, chosen.good - sum(map(len, held)))
        firsts.append(world.fitted(np.concatenate(fit), np.concatenate(held)))
        rests.append(rest)
    print(NIGHTS, flush=True)
    for name, share in MODELS.items():
        found = [
            list(_nights(world, first, rest, share, chosen, draw))
            for draw, (first, rest) in enumerate(zip(firsts, rests, strict=True))
        ]
        for night, of_draws in enumerate(zip(*found, strict=True), start=1):
            print(f"| {night} | {name} | {_cells(of_draws)} |", flush=True)
    print(f"\n{GROWN}", flush=True)
    for count in [0, *chosen.grow]:
        found_grown = []
        for first, rest in zip(firsts, rests, strict=True):
            fresh = np.concatenate(taken(rest, max(chosen.grow))[1])
            held, others = taken(rest, round(count * chosen.holdout))
            fit, _ = taken(others, count - sum(map(len, held)))
            both = np.concatenate([first.held_out, *held])
            model = world.fitted(np.concatenate(fit), both, first) if count else first
            found_grown.append(world.night(model, fresh, chosen.rate)[0])
        print(f"| {count} | {_cells(found_grown).rpartition(' | ')[0]} |", flush=True)
    return 0


def taken(units: Sequence[Numbers], count: int) -> tuple[list[Numbers], list[Numbers]]:
    """The first units, until they have so many images, and the others."""
    before = np.cumsum([0, *map(len, units)])[:-1] < count
    return (
        [unit for unit, is_taken in zip(units, before, strict=True) if is_taken],
        [unit for unit, is_taken in zip(units, before, strict=True) if not is_taken],
    )


def _nights(
    world: World,
    model: Model,
    good: Sequence[Numbers],
    share: float | None,
    chosen: argparse.Namespace,
    draw: int,
) -> Iterator[Night]:
    """The figures of nights; after each the model grows, unless the share is None."""
    deal = np.random.default_rng(1000 + draw)
    bad = deal.permutation(np.flatnonzero(world.images.labels))
    order = deal.permutation(len(good))
    for night, defective in enumerate(np.array_split(bad, chosen.nights)):
        images = np.concatenate([*(good[at] for at in order[night :: chosen.nights]), defective])
        figures, alarms = world.night(model, images, chosen.rate)
        yield figures
        if share is not None and len(alarms):
            calibrates = deal.random(len(alarms)) < share
            held_out = np.concatenate([model.held_out, alarms[calibrates]])
            model = world.fitted(alarms[~calibrates], held_out, model)


def _cells(nights: Sequence[Night]) -> str:
    """Means over random deals, and standard errors of these."""
    calibrated = np.mean([night.calibrated for night in nights])
    promised = np.mean([night.promised for night in nights])
    cells = [f"{calibrated:.0f}", f"{promised:.1%}"]
    cells += [mean_and_error([night.false_alarms for night in nights])]
    cells += [mean_and_error([night.missed for night in nights])]
    return " | ".join(cells)


def mean_and_error(values: Sequence[float]) -> str:
    """The mean of shares, and its standard error."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{np.mean(values):.1%} ± {error:.1%}"
