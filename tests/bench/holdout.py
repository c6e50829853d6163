"""What a model promises, and keeps, where photographs of one part are on both sides of a split.

python -m tests.bench holdout --data tiles --layout mtd --weights lite0.safetensors \\
    --exposure median

Of the parts without a defective image a fifth at random is tested; the others are fitted on and
calibrate. The rows differ in how a fifth of these is held out and how it calibrates: images at
random, as if paths named no part; whole parts whose images count each; whole parts that count once,
as jobs.fit does. Figures are means over `--draws` random deals with their standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ops.results.calibration import Calibration, unit_numbers
from tests.bench.loop import Numbers, World, mean_and_error
from tests.bench.tiles import parser

#: Share of parts that are tested, and of the rest that is held out.
SHARE = 0.2
#: Rows of the table, and whether parts are held out, and count, as a whole.
RULES = {
    "images, each counts": (False, False),
    "parts, each image counts": (True, False),
    "parts, each counts once": (True, True),
}
HEAD = (
    "| held out | calibrated on | asked for | promised | new good images: called anomalous "
    "| new good parts: an image called anomalous |\n" + "|---" * 6 + "|"
)


class Judged(NamedTuple):
    """Scores of good images that are tested, what they are compared with, and their parts."""

    calibration: Calibration
    scores: npt.NDArray[np.float64]
    parts: Numbers


def main(argv: Sequence[str]) -> int:
    """Print the table."""
    own = parser("holdout", __doc__)
    own.add_argument("--preset", default="efficientnet-lite0", help="a name in deploy/methods")
    own.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.05, 0.1])
    own.add_argument("--draws", type=int, default=10)
    chosen = own.parse_args(argv)
    world = World.of(chosen)
    deals = [_deal(world, np.random.default_rng(draw)) for draw in range(chosen.draws)]
    print(HEAD, flush=True)
    for what, (by_part, once) in RULES.items():
        judged = list[Judged]()
        for draw, (test, known) in enumerate(deals):
            held, fit = _held_out(known, by_part, np.random.default_rng(1000 + draw))
            model = world.fitted(fit, held)
            calibration = model.calibration if once else Calibration.of(model.scores.tolist())
            parts = unit_numbers([world.units[number] for number in test])
            judged.append(Judged(calibration, world.scores(model.detector, test), parts))
        for rate in chosen.rates:
            print(f"| {what} | {_cells(judged, rate)} |", flush=True)
    return 0


def _deal(world: World, deal: np.random.Generator) -> tuple[Numbers, list[Numbers]]:
    """Images to test, and those of each other part; without parts that have defective images."""
    good, _ = world.dealt(deal)
    count = round(SHARE * len(good))
    return np.concatenate(good[:count]), good[count:]


def _held_out(
    units: Sequence[Numbers], by_part: bool, deal: np.random.Generator
) -> tuple[Numbers, Numbers]:
    """Images that calibrate, and images to fit on."""
    if not by_part:
        units = [np.array([image]) for image in deal.permutation(np.concatenate(units))]
    count = round(SHARE * len(units))
    return np.concatenate(units[:count]), np.concatenate(units[count:])


def _cells(judged: Sequence[Judged], rate: float) -> str:
    of_images, of_parts, promised = [], [], []
    for calibration, scores, parts in judged:
        is_alarm = scores > calibration.threshold(rate)
        of_images.append(float(is_alarm.mean()))
        of_parts.append(float((np.bincount(parts, is_alarm) > 0).mean()))
        promised.append(calibration.promised_rate(rate) or 1.0)
    counts = np.mean([len(each.calibration.scores) for each in judged])
    cells = [f"{counts:.0f}", f"{rate:.1%}", f"{np.mean(promised):.1%}"]
    return " | ".join([*cells, mean_and_error(of_images), mean_and_error(of_parts)])
