"""Few shots on the magnetic tiles: image AUROC over how many good images were fitted on.

`python -m tests.bench shots` takes about half an hour on one thread, and draws shots.png here.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from matplotlib.figure import Figure

from jobs import fit, inventory
from jobs.cli import entry
from ops.detectors.detector import Checkpoint, Detector
from ops.detectors.registry import DETECTORS, detector_class
from ops.detectors.score_images import to_images
from ops.distributed import Alone
from ops.features.backbone import Backbone
from ops.images.inventory import Inventory
from ops.images.read_images import Read
from ops.results.metrics import roc
from pipelines.fitting.request import FitRequest, Select, split
from tests.bench.features import WEIGHTS
from tests.bench.measure import Row
from tests.conftest import DATA, ROOT

TILES = DATA / "mtd"
#: Presets, and what differs from them; of few images a bank keeps a quarter, as in the paper.
CURVES = {
    "patchcore-squeezenet": {"patchcore.coreset_ratio": "0.25"},
    "padim-squeezenet": {},
    "spade-squeezenet": {},
}
SHOTS = (1, 5, 16, 50)
SEEDS = range(3)
#: DifferNet's figure is for 16 shots; maps are not looked at.
FLOW = {"differnet.maps": "none", "differnet.score_transforms": "4"}
FLOW_SEEDS = range(5)


def rows() -> Iterator[Row]:
    """A row per method and number of shots; means and spreads over seeds."""
    if not WEIGHTS.exists():
        raise FileNotFoundError(f"few shots are measured on the magnetic tiles, not in {TILES}")
    with tempfile.TemporaryDirectory(prefix="nightloupe-bench-") as folder:
        listed = _listed(folder)
        found: dict[str, list[list[float]]] = {}
        for preset, changes in CURVES.items():
            wanted = _request(preset, changes)
            test = _test(listed, wanted)
            for shots in SHOTS:
                values = [_auroc(listed, wanted, test, shots, seed) for seed in SEEDS]
                found.setdefault(wanted.method, []).append(values)
                yield _row(wanted.method, shots, values)
        _draw(found)
        wanted = _request("differnet-squeezenet", FLOW)
        test = _test(listed, wanted)
        yield _row("differnet", 16, [_auroc(listed, wanted, test, 16, s) for s in FLOW_SEEDS])


def _row(method: str, shots: int, values: Sequence[float]) -> Row:
    mean, spread = statistics.mean(values), statistics.stdev(values)
    each = ", ".join(f"{value:.3f}" for value in values)
    return Row(f"{method}, {shots} shots", f"{mean:.3f} ± {spread:.3f}", note=f"seeds: {each}")


def _listed(folder: str) -> Inventory:
    where = f"{folder}/tiles.parquet"
    names = ["--layout", "mtd", "--train-names", str(TILES / "train_names.txt")]
    inventory.main(["--archive", str(TILES), *names, "--output", where])
    return Inventory(where)


def _request(preset: str, changes: dict[str, str]) -> FitRequest:
    groups = {name: kind.Settings for name, kind in DETECTORS.items()}
    words = ["--config", str(ROOT / "deploy" / "methods" / f"{preset}.toml")]
    words += ["--backbone.weights", str(WEIGHTS)]
    words += [word for name, value in changes.items() for word in (f"--{name}", value)]
    settings, methods = entry.parse(fit.Settings, fit.__doc__, words, groups)
    return fit.request_of(settings, methods[settings.method], None)


def _test(listed: Inventory, wanted: FitRequest) -> pa.Table:
    rows = listed.read()
    return _read(wanted, rows.filter(pa.array([s == "test" for s in rows["split"].to_pylist()])))


def _read(wanted: FitRequest, rows: pa.Table) -> pa.Table:
    return Read(wanted.input, wanted.decode, wanted.fetch)(rows)


def _auroc(listed: Inventory, wanted: FitRequest, test: pa.Table, shots: int, seed: int) -> float:
    settings: Any = wanted.settings
    if hasattr(settings, "seed"):
        settings = replace(settings, seed=seed)
    wanted = replace(wanted, settings=settings, select=Select(shots=shots, seed=seed))
    good = _read(wanted, split(listed, wanted).fit)
    detector: Detector = detector_class(wanted.method)(settings, Backbone(wanted.backbone))
    detector.add_images(_images(wanted, good), torch.arange(len(good)))
    detector.share(Alone())
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    scores = torch.cat(
        [
            detector.score(_images(wanted, test.slice(start, 8))).image
            for start in range(0, len(test), 8)
        ]
    )
    labels = test["label"].to_numpy() == 1
    curve = roc(scores.double().numpy(), labels)
    assert curve
    return curve.area()


def _images(wanted: FitRequest, rows: pa.Table) -> torch.Tensor:
    return to_images(rows, wanted.input.size, "cpu")


def _draw(found: dict[str, list[list[float]]]) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    for method, values in found.items():
        means = [statistics.mean(each) for each in values]
        spreads = [statistics.stdev(each) for each in values]
        panel.errorbar(SHOTS, means, spreads, marker="o", capsize=3, label=method)
    panel.set(
        xscale="log",
        xticks=SHOTS,
        xticklabels=SHOTS,
        xlabel="good images fitted on",
        ylabel=f"image AUROC, mean and deviation of {len(SEEDS)} draws",
        title="Magnetic tiles, SqueezeNet",
    )
    panel.minorticks_off()
    panel.legend()
    figure.savefig(Path("shots.png"), dpi=100, metadata={"Software": None})
