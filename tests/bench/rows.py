"""Rows a second through the whole chain, from tars to the published table, on a Ray cluster.

The detector costs nothing, so what is left is the chain: listing aside, all that a run does for an
image of 64 x 64 pixels, whose decoding costs little too.
"""

from __future__ import annotations

import dataclasses
import io
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import Inventory
from ops.archives.layouts import LAYOUTS, PathParser
from ops.archives.listing import IMAGE_SUFFIXES
from ops.detectors.detector import FitCounts, Scores
from ops.detectors.model_card import ModelCard, ProductCard
from ops.detectors.model_folder import Model
from ops.detectors.patchcore import PatchCoreSettings
from ops.detectors.score_images import ScoreImages
from ops.features.backbone import Backbone, BackboneSettings
from ops.images.decode import DecodeSettings
from ops.images.read_images import Read
from ops.images.resize import InputSettings
from ops.results.anomaly_map import Scale
from ops.results.calibration import Calibration
from ops.results.write_maps import DrawMaps
from ops.storage.paths import Out
from pipelines.cluster.connection import connected
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel
from pipelines.scoring import score, stream
from pipelines.scoring.resume import resume_or_start
from pipelines.scoring.run import ScoreSettings
from pipelines.tables import take_inventory
from tests import pictures
from tests.bench.measure import Row, Time, timed

SIDE, TARS, IN_TAR = 64, 8, 4096
INPUT = InputSettings(size=SIDE)


class NoDetector:
    """Scores images by nothing."""

    def score(self, images: Tensor) -> Scores:
        """Zeros."""
        return Scores(torch.zeros(len(images)), torch.zeros(len(images), 8, 8))


class ScoreByNothing(stream._TimedScoreImages):
    """The detect stage without a detector."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._model.detector = lambda _: NoDetector()  # type: ignore[method-assign, assignment, union-attr, return-value]


def draw_tars(folder: Path, tars: int = TARS) -> None:
    """Tars of JPEG files that differ in a few pixels."""
    files = [
        pictures.encoded(pictures.texture(seed, SIDE, colour=True), "JPEG", quality=90)
        for seed in range(64)
    ]
    for number in range(tars):
        with tarfile.open(folder / f"part{number}.tar", "w") as tar:
            for image in range(IN_TAR):
                data = files[(image * 7 + number) % len(files)]
                entry = tarfile.TarInfo(f"part/test/good/{number}-{image:05d}.jpg")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def inventory(folder: Path, out: Path) -> Inventory:
    """The images of all tars."""
    parser = PathParser(LAYOUTS["mvtec"], "")
    suffixes = IMAGE_SUFFIXES.split()
    tars = sorted(str(tar) for tar in folder.glob("*.tar"))
    take_inventory.take(tars, str(out), parser, suffixes, lambda *_: None)
    return Inventory(str(out))


def free_model(seen: InputSettings = INPUT) -> Model:
    """A model whose detector is never loaded."""
    settings = BackboneSettings("squeezenet1_1", "features.3", "random")
    backbone = Backbone(settings)
    calibration = Calibration(tuple(np.linspace(0, 1, 100).tolist()))
    card = ModelCard(
        method="patchcore",
        settings=dataclasses.asdict(PatchCoreSettings()),
        backbone=settings,
        backbone_sha256=backbone.fingerprint(),
        input=seen,
        decode=DecodeSettings(),
        products={"part": ProductCard("part", "", FitCounts(1), {}, calibration)},
        map_scale=Scale(0.0, 1.0),
        false_alarm_rate=0.01,
        fit={},
    )
    return Model(card, backbone.state(), {"part": {"bank": torch.zeros(1, 1)}})


def steps(listed: Inventory, model: Model) -> Iterator[Row]:
    """CPU time of each stage for a row, on one thread, without Ray."""
    rows = listed.read().slice(0, 2048)
    rows = rows.append_column("inventory_row", pa.array(range(len(rows)), pa.int64()))
    read = Read(INPUT, DecodeSettings(), FetchSettings(), threads=1)
    detect = ScoreImages(_Tensors(model))
    detect._model.detector = lambda _: NoDetector()  # type: ignore[assignment, return-value]
    draw = DrawMaps("bench", INPUT, Scale(0.0, 1.0), 4.0, {"part": None}, Out("unused"), "none")
    batches = [rows.slice(start, 16) for start in range(0, len(rows), 16)]
    for what, step in (("read", read), ("detect", detect), ("draw", draw)):
        done: list[pa.Table] = [step(batch) for batch in batches]
        assert set(pa.concat_tables(done)["status"].to_pylist()) == {"ok"}
        seconds = timed(lambda: [step(batch) for batch in batches], 3)  # noqa: B023
        each = seconds.times(1 / len(rows))
        yield Row(f"  {what}, a row, without Ray", f"{each.cpu * 1e6:.0f} us", each)
        batches = done


class _Tensors:
    def __init__(self, model: Model) -> None:
        self.card, self.masks, self._model = model.card, model.masks, model

    def of_backbone(self) -> dict[str, Tensor]:
        return self._model.backbone

    def of_product(self, product: str) -> dict[str, Tensor]:
        return self._model.products[product]


def through_ray(listed: Inventory, model: Model, folder: Path) -> Iterator[Row]:
    """A whole run. The rate leaves out the time until the first rows, in which processes start."""
    resources = Resources(workers=1, cpus=0.5, reader_cpus=0.5)
    stream._TimedScoreImages = ScoreByNothing  # type: ignore[misc]
    with connected(cpus=2):
        shared = SharedModel.put(model)
        out = Out(str(folder / "out"))
        run = resume_or_start(listed, shared, out, ScoreSettings("none"), "2026-01-01")
        start, cpu = time.perf_counter(), time.process_time()
        first: list[tuple[float, int]] = []

        def progress(stage: str, done: int, total: int, failed: int = 0, /) -> None:
            if done:
                first.append((time.perf_counter(), done))

        totals = score.score(run, FetchSettings(), resources, "0", progress)
        wall, driver = time.perf_counter() - start, time.process_time() - cpu
    assert totals["statuses"] == {"ok": len(listed)}
    (began, had), (ended, done) = first[0], first[-1]
    rate = (done - had) / max(ended - began, 1e-9)
    yield Row(
        f"rows through the whole chain, {len(listed):,} JPEGs of {SIDE} px in {TARS} tars, 2 CPUs",
        f"{rate:.0f} rows/s",
        Time(driver, wall),
        "3 x",
        f"from the first rows to the last; {len(listed) / wall:.0f} with the start of the stream",
    )


def rows() -> Iterator[Row]:
    """The stages alone, then the run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tars").mkdir()
        draw_tars(folder / "tars")
        listed, model = inventory(folder / "tars", folder / "inventory.parquet"), free_model()
        yield from steps(listed, model)
        yield from through_ray(listed, model, folder)
