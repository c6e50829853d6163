"""Few shots on the magnetic tiles: image AUROC over the number of good tiles in the fit.

Of each tile one photograph is fitted on; no tile of the fit is tested. `python -m tests.bench
shots` takes about an hour on one thread and writes shots.png.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from matplotlib.figure import Figure

from jobs import fit
from jobs.cli import entry
from ops.archives.inventory import SCHEMA, Inventory
from ops.detectors.detector import Checkpoint, Detector
from ops.detectors.image_batches import to_images
from ops.detectors.registry import DETECTORS, detector_class
from ops.distributed import Alone
from ops.features.backbone import Backbone
from ops.images.read_images import Read
from ops.results.metrics import roc
from ops.storage import parquet
from pipelines.fitting.request import FitRequest, Select, split
from tests.bench import tile_parts
from tests.bench.features import EFFICIENTNET, WEIGHTS
from tests.bench.measure import Row
from tests.conftest import ROOT

_QUARTER = {"patchcore.coreset_ratio": "0.25"}
_LITE0 = {
    "backbone.weights": str(EFFICIENTNET),
    "backbone.mean": "0.485,0.456,0.406",
    "backbone.std": "0.229,0.224,0.225",
    "input.exposure": "median",
}
#: Presets and changed settings by network. Of few images a bank keeps a quarter, as in the paper.
CURVES = {
    "SqueezeNet": {
        "patchcore-squeezenet": _QUARTER,
        "padim-squeezenet": {},
        "spade-squeezenet": {},
    },
    "EfficientNet-lite0, exposure median": {
        "efficientnet-lite0": _QUARTER | _LITE0,
        "padim-efficientnet-lite0": _LITE0,
        "spade-efficientnet-lite0": _LITE0,
    },
}
#: Image AUROCs by network and method: of each number of shots, those of the seeds.
Results = dict[str, dict[str, list[list[float]]]]
SHOTS = (1, 5, 16, 50)
SEEDS = range(3)
#: DifferNet's published result is for 16 shots. Its maps are not needed.
FLOW = {"differnet.maps": "none", "differnet.score_transforms": "4"}
FLOW_SEEDS = range(5)


def rows() -> Iterator[Row]:
    """A row per method and number of shots, with mean and standard deviation over seeds."""
    if not WEIGHTS.exists():
        raise FileNotFoundError(
            f"few shots are measured on the magnetic tiles; {tile_parts.TILES} lacks them"
        )
    with tempfile.TemporaryDirectory(prefix="nightloupe-bench-") as folder:
        listed = _inventory(f"{folder}/tiles.parquet")
        results: Results = {}
        for network, presets in CURVES.items():
            of_network = results.setdefault(network, {})
            for preset, changes in presets.items():
                request = preset_request(preset, changes)
                test = _test(listed, request)
                for shots in SHOTS:
                    values = [_auroc(listed, request, test, shots, seed) for seed in SEEDS]
                    of_network.setdefault(request.method, []).append(values)
                    yield _row(f"{request.method}, {network}", shots, values)
        _draw(results)
        request = preset_request("differnet-squeezenet", FLOW)
        test = _test(listed, request)
        yield _row("differnet", 16, [_auroc(listed, request, test, 16, s) for s in FLOW_SEEDS])


def _row(what: str, shots: int, values: Sequence[float]) -> Row:
    mean, spread = statistics.mean(values), statistics.stdev(values)
    each = ", ".join(f"{value:.3f}" for value in values)
    return Row(f"{what}, {shots} shots", f"{mean:.3f} ± {spread:.3f}", note=f"seeds: {each}")


def _inventory(where: str) -> Inventory:
    """One photograph of each tile to fit on, and all of those to test."""
    rows = tile_parts.listed()
    is_fitted = pc.equal(rows["split"], "train")
    fitted = tile_parts.one_of_each_part(rows.filter(is_fitted))
    parquet.write(where, SCHEMA, [pa.concat_tables([fitted, rows.filter(pc.invert(is_fitted))])])
    return Inventory(where)


def preset_request(preset: str, changes: dict[str, str]) -> FitRequest:
    """The request of a fit with a preset of deploy/methods/ and some settings changed."""
    groups = {name: kind.Settings for name, kind in DETECTORS.items()}
    words = ["--config", str(ROOT / "deploy" / "methods" / f"{preset}.toml")]
    words += ["--backbone.weights", str(WEIGHTS)]
    words += [word for name, value in changes.items() for word in (f"--{name}", value)]
    settings, methods = entry.parse(fit.Settings, fit.__doc__, words, groups)
    return fit.request_of(settings, methods[settings.method], None)


def _test(listed: Inventory, request: FitRequest) -> pa.Table:
    rows = listed.read()
    return _read(request, rows.filter(pa.array([s == "test" for s in rows["split"].to_pylist()])))


def _read(request: FitRequest, rows: pa.Table) -> pa.Table:
    return Read(request.input, request.decode, request.fetch)(rows)


def _auroc(listed: Inventory, request: FitRequest, test: pa.Table, shots: int, seed: int) -> float:
    settings: Any = request.settings
    if hasattr(settings, "seed"):
        settings = replace(settings, seed=seed)
    request = replace(request, settings=settings, select=Select(shots=shots, seed=seed))
    good = _read(request, split(listed, request).fit)
    detector: Detector = detector_class(request.method)(settings, Backbone(request.backbone))
    detector.add_images(_images(request, good), torch.arange(len(good)))
    detector.exchange(Alone())
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    scores = torch.cat(
        [
            detector.score(_images(request, test.slice(start, 8))).image
            for start in range(0, len(test), 8)
        ]
    )
    labels = test["label"].to_numpy() == 1
    curve = roc(scores.double().numpy(), labels)
    assert curve
    return curve.area()


def _images(request: FitRequest, rows: pa.Table) -> torch.Tensor:
    return to_images(rows, request.input, "cpu")


def _draw(results: Results) -> None:
    figure = Figure(figsize=(5 * len(results), 4), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, (network, of_network) in zip(panels, results.items(), strict=True):
        for method, values in of_network.items():
            means = [statistics.mean(each) for each in values]
            spreads = [statistics.stdev(each) for each in values]
            panel.errorbar(SHOTS, means, spreads, marker="o", capsize=3, label=method)
        panel.set(xscale="log", xticks=SHOTS, xticklabels=SHOTS, xlabel="good images fitted on")
        panel.set_title(f"Magnetic tiles, {network}")
        panel.minorticks_off()
    panels[0].set_ylabel(f"image AUROC, mean and deviation of {len(SEEDS)} draws")
    panels[0].legend()
    figure.savefig(Path("shots.png"), dpi=100, metadata={"Software": None})
