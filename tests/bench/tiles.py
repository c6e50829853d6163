"""Every detector on a folder of labelled images: metrics, seconds and sizes as one table.

python -m tests.bench tiles --data tiles --layout mtd --train-names train_names.txt \\
    --presets efficientnet-lite0 fastflow-efficientnet-lite0 --weights lite0.safetensors

Images are listed as by jobs.inventory: `--layout`, or `--pattern` for any other folder. A detector
is fitted on the good images of the split `train` and scores the split `test`, by the project's own
functions, in one process without Ray. Words behind `--` are settings of jobs.fit for all presets,
such as `-- --ssnf.synthetic false`. Nothing is chosen here: what the presets set was chosen on good
images alone, as they say; `--held-out 96` shows the loss of so many of them after each epoch, left
out of the fit, for such choices, and scores nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from jobs import fit, inventory
from jobs.cli import entry
from ops.archives.inventory import Inventory
from ops.detectors.cflow import CFlow
from ops.detectors.detector import Checkpoint, Detector
from ops.detectors.registry import DETECTORS, detector_class
from ops.detectors.trained_on_features import TrainedOnFeatures
from ops.distributed import Alone
from ops.features.backbone import BackboneSettings
from ops.flows.conditional_flow import Positions
from pipelines.fitting.request import FitRequest
from tests.bench.remembered import RememberingBackbone
from tests.bench.tile_images import Change, Images
from tests.bench.tile_metrics import Metrics, Pixels, measured
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
    chosen = _parser().parse_args(argv)
    if not chosen.data.is_dir():
        raise SystemExit(f"{chosen.data} is no folder; --data takes the folder of the images")
    torch.set_num_threads(1)
    changes = [Change.named(name) for name in chosen.changes]
    rows = _rows(chosen)
    products = sorted(set(rows["product"].to_pylist()))
    backbones: dict[BackboneSettings, RememberingBackbone] = {}
    if not chosen.held_out:
        print(HEAD, flush=True)
    for product in products:
        of_product = rows.filter(pc.equal(rows["product"], product))
        for preset in chosen.presets:
            request = _request(preset, chosen)
            if request.backbone not in backbones:
                backbones[request.backbone] = RememberingBackbone(request.backbone)
            bench = Bench(request, of_product, backbones[request.backbone], product)
            what = preset if len(products) == 1 else f"{preset}, {product}"
            if chosen.held_out:
                bench.show_held_out(what, chosen.held_out)
                continue
            for row in bench.lines(what, changes, chosen.seeds or [None]):
                print(row, flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.bench tiles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER")
    add("--layout", default="", help="a layout of jobs.inventory")
    add("--pattern", default="", help="or a pattern of jobs.inventory")
    add("--train-names", default="", metavar="FILE", help="as jobs.inventory takes it")
    add("--presets", nargs="+", default=["efficientnet-lite0"], help="names in deploy/methods")
    add("--backbone", default="", help="another network for all presets")
    add("--layers", default="", help="its layers")
    add("--weights", default="", help="its weights")
    add("--exposure", default="", help="as_is, median or standard; default: the preset's")
    add("--epochs", type=int, default=0, help="of trained detectors; 0 = the preset's")
    add("--seeds", type=int, nargs="*", help="one fit for each; means and deviations are shown")
    add("--changes", nargs="+", default=["as_is"], help="of test images: x0.7, gamma0.8, ...")
    add("--held-out", type=int, default=0, metavar="N")
    add("settings", nargs="*", help="behind --: settings of jobs.fit")
    return parser


def _rows(chosen: argparse.Namespace) -> pa.Table:
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


def _request(preset: str, chosen: argparse.Namespace) -> FitRequest:
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
        self, request: FitRequest, rows: pa.Table, backbone: RememberingBackbone, product: str
    ) -> None:
        """Read all images; `rows` are those of the product."""
        split, label = rows["split"], rows["label"]
        good = pc.and_(pc.equal(split, "train"), pc.not_equal(pc.fill_null(label, 0), 1))
        self._request, self._backbone, self._product = request, backbone, product
        self._good = Images.read(rows.filter(good), request)
        self._test = Images.read(rows.filter(pc.equal(split, "test")), request)
        self._masks = self._test.masks(request)

    def lines(
        self, what: str, changes: Sequence[Change], seeds: Sequence[int | None]
    ) -> Iterator[str]:
        """The table's rows, one for each change of the scored images."""
        results: dict[Change, list[tuple[Metrics, float, Fit]]] = {}
        for seed in seeds:
            fitted = self._fitted(self._seeded(seed))
            for change in changes:
                metrics, seconds = self._scored(fitted.detector, change)
                results.setdefault(change, []).append((metrics, seconds, fitted))
        for change, of_seeds in results.items():
            yield line(what, change, of_seeds)

    def _seeded(self, seed: int | None) -> Any:
        settings: Any = self._request.settings
        if seed is None or not hasattr(settings, "seed"):
            return settings
        return dataclasses.replace(settings, seed=seed)

    def _detector(self, settings: Any) -> Detector:
        detector = detector_class(self._request.method)(settings, self._backbone)
        detector.product = self._product
        return detector

    def _fitted(self, settings: Any) -> Fit:
        detector = self._detector(settings)
        start, self._backbone.saved = time.process_time(), 0.0
        for rows, batch in self._good.batches():
            self._backbone.expect(batch)
            detector.add_images(batch, rows)
            detector.exchange(Alone())
        detector.fit(Alone(), lambda *_: None, Checkpoint())
        seconds = time.process_time() - start + self._backbone.saved
        size = sum(t.numel() * t.element_size() for t in detector.state().values())
        return Fit(detector, seconds, size)

    def _scored(self, detector: Detector, change: Change) -> tuple[Metrics, float]:
        """Metrics of the test images, and the CPU seconds of scoring with features."""
        sigma = self._request.settings.sigma
        pixels = Pixels(detector.map_ceiling(), self._request.input.size, sigma)
        scores: list[float] = []
        seconds = 0.0
        for rows, batch in self._test.batches(change):
            self._backbone.expect(batch)
            start, self._backbone.saved = time.process_time(), 0.0
            scored = detector.score(batch)
            seconds += time.process_time() - start + self._backbone.saved
            scores += scored.image.double().tolist()
            for row, values in zip(rows.tolist(), scored.map.numpy(), strict=True):
                pixels.add(values, self._masks[row])
        return measured(scores, self._test.labels, pixels), seconds

    def show_held_out(self, what: str, count: int) -> None:
        """Print the mean loss of held-out good images after each epoch of a flow.

        Held out are images spread over the list. Raises SystemExit for other detectors.
        """
        detector = self._detector(self._request.settings)
        if not isinstance(detector, TrainedOnFeatures):
            raise SystemExit(f"--held-out is for flows on feature maps, not for {what}")
        spacing = max(1, len(self._good.pixels) // count)
        held: list[tuple[int, Tensor]] = []
        for rows, batch in self._good.batches():
            self._backbone.expect(batch)
            for row, image in zip(rows.tolist(), batch, strict=True):
                if row % spacing == 0 and len(held) < count:
                    held.append((row, image[None]))
                else:
                    detector.add_images(image[None], torch.tensor([row]))
        show = functools.partial(_show_epoch, what, detector, held)
        detector.fit(Alone(), show, Checkpoint())


@torch.no_grad()
def _show_epoch(
    what: str,
    detector: TrainedOnFeatures,
    held: Sequence[tuple[int, Tensor]],
    _stage: str,
    done: int,
    total: int,
    _failed: int = 0,
    /,
) -> None:
    """The progress callback of a fit: prints the loss of held-out images, unchanged ones."""
    assert detector.network is not None
    detector.network.eval()
    losses = [float(detector.network(_inputs(detector, image)).mean()) for _, image in held]
    detector.network.train()
    print(
        f"{what}: epoch {done} of {total}, held-out loss {statistics.mean(losses):.6g}", flush=True
    )


def _inputs(detector: TrainedOnFeatures, image: Tensor) -> Any:
    """What the flow of a detector takes of an image (1, 3, H, W), all of it and unchanged."""
    maps = detector.features(image)
    if not isinstance(detector, CFlow):
        return maps
    return [
        Positions(layer.flatten(2).transpose(1, 2), torch.arange(layer[0, 0].numel())[None])
        for layer in maps
    ]


def line(what: str, change: Change, of_seeds: Sequence[tuple[Metrics, float, Fit]]) -> str:
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
    cells += [shown([f.seconds for _, _, f in of_seeds], 0), shown([s for _, s, _ in of_seeds], 0)]
    cells.append(f"{of_seeds[0][2].size / 1e6:.3g} MB")
    return f"| {' | '.join(cells)} |"
