"""Every detector on a folder of labelled images: metrics, seconds and sizes as one table.

python -m tests.bench tiles --data tiles --layout mtd --train-names train_names.txt \\
    --presets efficientnet-lite0 fastflow-efficientnet-lite0 --weights lite0.safetensors

Images are listed as by jobs.inventory: `--layout`, or `--pattern` for any other folder. A detector
is fitted on the good images of the split `train` and scores the split `test`, by the project's own
functions, in one process without Ray. Words behind `--` are settings of jobs.fit for all presets,
such as `-- --ssnf.synthetic false`. Nothing is chosen here: what the presets set was chosen on good
images alone, as they say. `--held-out 0.1` leaves this share of the good images out of fits, by
part where parts are known, and shows their loss after each epoch of a flow, for such choices.
`--ensembles a+b` combines presets of the run as jobs.ensemble does, calibrated on these images.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from jobs import fit, inventory
from jobs.cli import entry
from ops.archives.inventory import Inventory
from ops.detectors.detector import Checkpoint, Detector
from ops.detectors.registry import DETECTORS, detector_class
from ops.distributed import Alone
from ops.features.backbone import BackboneSettings
from pipelines.fitting import hold_out
from pipelines.fitting.request import FitRequest
from tests.bench.remembered import RememberingBackbone
from tests.bench.tile_ensembles import combine
from tests.bench.tile_images import AS_IS, Change, Images
from tests.bench.tile_losses import Shown
from tests.bench.tile_metrics import Answers, Metrics, measured
from tests.conftest import ROOT

HEAD = (
    "| preset | test images | image AUROC | pixel AUROC | AU-PRO 0.3 | AU-PRO 0.05 | best F1 | "
    "errors there: false alarms + misses | fit CPU s | score CPU s | model |\n" + "|---" * 11 + "|"
)


class Fit(NamedTuple):
    """A fitted detector, the CPU seconds that it took with its features, and its size in bytes."""

    detector: Detector
    seconds: float
    size: int


def main(argv: Sequence[str]) -> int:
    """Print the table, a row as soon as it is known."""
    chosen = _arguments(argv)
    if unknown := {x for name in chosen.ensembles for x in name.split("+")} - set(chosen.presets):
        raise SystemExit(f"--ensembles names {sorted(unknown)}, which --presets does not")
    if chosen.ensembles and not chosen.held_out:
        raise SystemExit("--ensembles are calibrated on held-out images; give --held-out")
    if not chosen.data.is_dir():
        raise SystemExit(f"{chosen.data} is no folder; --data takes the folder of the images")
    torch.set_num_threads(1)
    changes = [Change.named(name) for name in chosen.changes]
    rows = listed(chosen)
    products = sorted(set(rows["product"].to_pylist()))
    backbones: dict[BackboneSettings, RememberingBackbone] = {}
    print(HEAD, flush=True)
    for product in products:
        of_product = rows.filter(pc.equal(rows["product"], product))
        of_presets: dict[str, Bench] = {}
        for preset in chosen.presets:
            request = request_of(preset, chosen)
            if request.backbone not in backbones:
                backbones[request.backbone] = RememberingBackbone(request.backbone)
            bench = Bench(
                request, of_product, backbones[request.backbone], product, chosen.held_out
            )
            of_presets[preset] = bench
            what = preset if len(products) == 1 else f"{preset}, {product}"
            for row in bench.lines(what, changes, chosen.seeds or [None]):
                print(row, flush=True)
        for name in chosen.ensembles:
            print(ensemble_line(name, [of_presets[each] for each in name.split("+")]), flush=True)
    return 0


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The command line of a benchmark on a folder of images: where they are, how they are seen."""
    parser = argparse.ArgumentParser(
        f"python -m tests.bench {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER")
    add("--layout", default="", help="a layout of jobs.inventory")
    add("--pattern", default="", help="or a pattern of jobs.inventory")
    add("--train-names", default="", metavar="FILE", help="as jobs.inventory takes it")
    add("--backbone", default="", help="another network for all presets")
    add("--layers", default="", help="its layers")
    add("--weights", default="", help="its weights")
    add("--exposure", default="", help="as_is, median or standard; default: the preset's")
    add("--epochs", type=int, default=0, help="of trained detectors; 0 = the preset's")
    add("settings", nargs="*", help="behind --: settings of jobs.fit")
    return parser


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    own = parser("tiles", __doc__)
    add = own.add_argument
    add("--presets", nargs="+", default=["efficientnet-lite0"], help="names in deploy/methods")
    add("--seeds", type=int, nargs="*", help="one fit for each; means and deviations are shown")
    add("--changes", nargs="+", default=["as_is"], help="of test images: x0.7, gamma0.8, ...")
    add(
        "--held-out",
        type=float,
        default=0,
        metavar="SHARE",
        help="of good images, left out of fits",
    )
    add("--ensembles", nargs="+", default=[], metavar="A+B", help="presets that score together")
    return own.parse_args(argv)


def listed(chosen: argparse.Namespace) -> pa.Table:
    """The inventory of the folder. Raises SystemExit if an image belongs to no product."""
    with tempfile.TemporaryDirectory(prefix="nightloupe-bench-") as folder:
        words = ["--archive", str(chosen.data), "--output", f"{folder}/images.parquet"]
        for name in ("layout", "pattern", "train_names"):
            if value := getattr(chosen, name):
                words += [f"--{name.replace('_', '-')}", value]
        inventory.main(words)
        rows = Inventory(f"{folder}/images.parquet").read()
    if rows["product"].null_count or not len(rows):
        raise SystemExit("paths of images do not match; give another --layout or --pattern")
    return rows


def request_of(preset: str, chosen: argparse.Namespace) -> FitRequest:
    """The request of a preset, with the settings of the command line."""
    groups = {name: kind.Settings for name, kind in DETECTORS.items()}
    words = ["--config", str(ROOT / "deploy" / "methods" / f"{preset}.toml")]
    for name, value in {
        "backbone.name": chosen.backbone,
        "backbone.layers": chosen.layers,
        "backbone.weights": chosen.weights,
        "input.exposure": chosen.exposure,
    }.items():
        words += [f"--{name}", value] if value else []
    settings, methods = entry.parse(fit.Settings, fit.__doc__, words + chosen.settings, groups)
    request = fit.request_of(settings, methods[settings.method], None)
    if chosen.epochs and hasattr(request.settings, "epochs"):
        of_method: Any = dataclasses.replace(request.settings, epochs=chosen.epochs)
        request = dataclasses.replace(request, settings=of_method)
    return request


class Bench:
    """One preset on one product."""

    def __init__(
        self,
        request: FitRequest,
        rows: pa.Table,
        backbone: RememberingBackbone,
        product: str,
        held_out: float = 0,
    ) -> None:
        """Read all images; `rows` are those of the product."""
        split, label = rows["split"], rows["label"]
        good = rows.filter(
            pc.and_(pc.equal(split, "train"), pc.not_equal(pc.fill_null(label, 0), 1))
        )
        held = np.zeros(len(good), dtype=bool)
        held[hold_out.choose(good, [product] * len(good), held_out, 0, 0)[0]] = True
        self._request, self._backbone, self._product = request, backbone, product
        self._good = Images.read(good.filter(pa.array(~held)), request)
        self._held = Images.read(good.filter(pa.array(held)), request)
        self._test = Images.read(rows.filter(pc.equal(split, "test")), request)
        self._masks = self._test.masks(request)
        #: What the detector of the last seed says of held-out images and of the test images.
        self.held_out, self.answers = Answers.none(), Answers.none()

    def lines(
        self, what: str, changes: Sequence[Change], seeds: Sequence[int | None]
    ) -> Iterator[str]:
        """The table's rows, one for each change of the scored images."""
        results: dict[Change, list[tuple[Metrics, float, Fit]]] = {}
        for seed in seeds:
            fitted = self._fitted(self._seeded(seed), what)
            for change in changes:
                answers = self._scored(fitted.detector, self._test, change)
                metrics = self.measured(answers, fitted.detector.map_ceiling())
                results.setdefault(change, []).append((metrics, answers.seconds, fitted))
                self.answers = answers if change == AS_IS else self.answers
            self.held_out = self._scored(fitted.detector, self._held, AS_IS)
        for change, of_seeds in results.items():
            yield line(what, change, of_seeds)

    def _seeded(self, seed: int | None) -> Any:
        settings: Any = self._request.settings
        if seed is None or not hasattr(settings, "seed"):
            return settings
        return dataclasses.replace(settings, seed=seed)

    def _fitted(self, settings: Any, what: str) -> Fit:
        detector = detector_class(self._request.method)(settings, self._backbone)
        detector.product = self._product
        start, self._backbone.saved = time.process_time(), 0.0
        for rows, batch in self._good.batches():
            self._backbone.expect(batch)
            detector.add_images(batch, rows)
            detector.exchange(Alone())
        show = Shown(what, detector, self._held)
        detector.fit(Alone(), show, Checkpoint())
        seconds = time.process_time() - start + self._backbone.saved - show.seconds
        size = sum(t.numel() * t.element_size() for t in detector.state().values())
        return Fit(detector, seconds, size)

    def _scored(self, detector: Detector, images: Images, change: Change) -> Answers:
        """What the detector says of images, and the CPU seconds of scoring with features."""
        answers = Answers.none()
        for _, batch in images.batches(change):
            self._backbone.expect(batch)
            start, self._backbone.saved = time.process_time(), 0.0
            scored = detector.score(batch)
            answers.seconds += time.process_time() - start + self._backbone.saved
            answers.scores += scored.image.double().tolist()
            answers.maps += list(scored.map.numpy())
        return answers

    def measured(self, answers: Answers, ceiling: float, floor: float = 0.0) -> Metrics:
        """Metrics of the test images; values of maps lie between floor and ceiling."""
        sigma = self._request.settings.sigma
        return measured(answers, self._test.labels, self._masks, (floor, 4 * ceiling), sigma)


def ensemble_line(name: str, members: Sequence[Bench]) -> str:
    """A row of the table: presets that score together, on the maps of the first one's size."""
    answers = combine([(each.answers, each.held_out) for each in members])
    values = np.stack(answers.maps)
    low, high = float(values.min()), float(values.max())
    metrics = members[0].measured(answers, high / 4, low)
    return line(name, AS_IS, [(metrics, answers.seconds, None)])


def line(what: str, change: Change, of_seeds: Sequence[tuple[Metrics, float, Fit | None]]) -> str:
    """A row of the table: means, and standard deviations if there are several fits."""
    metrics = [one for one, _, _ in of_seeds]

    def shown(values: Sequence[float], digits: int = 3) -> str:
        text = f"{statistics.mean(values):.{digits}f}"
        if len(values) > 1:
            text += f" ± {statistics.stdev(values):.{digits}f}"
        return text

    areas = [[m[n] for m in metrics] for n in range(5)]
    errors = [m.false_alarms + m.misses for m in metrics]
    kinds = ", ".join(f"{m.false_alarms} + {m.misses}" for m in metrics)
    cells = [what, change.name, *map(shown, areas), f"{shown(errors, 0)} = {kinds}"]
    fits = [fit for _, _, fit in of_seeds if fit]
    cells.append(shown([fit.seconds for fit in fits], 0) if fits else "")
    cells.append(shown([seconds for _, seconds, _ in of_seeds], 0))
    cells.append(f"{fits[0].size / 1e6:.3g} MB" if fits else "")
    return f"| {' | '.join(cells)} |"
