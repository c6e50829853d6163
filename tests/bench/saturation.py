"""Images a second over the number of workers, until something else than the workers saturates.

Workers wait as long as a GPU that scores `RATE` images a second would compute, and use no CPU. So
any number of them runs on two cores, and what is left is the rest of a run: readers, Ray, driver.
"""

from __future__ import annotations

import contextlib
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
from ops.detectors.detector import Scores
from ops.images.read_images import READ, Read
from ops.images.resize import InputSettings
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.cluster.connection import connected
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel
from pipelines.scoring import score, stream
from pipelines.scoring.resume import resume_or_start
from pipelines.scoring.run import ScoreSettings
from tests.bench import rows as chain
from tests.bench.measure import Row, Time

#: Images a second of a worker.
RATE = 100
#: Seconds for which a run has images.
_SECONDS = 20
_MOST = chain.TARS * chain.IN_TAR


class WaitingDetector:
    """Takes the time of a GPU, and scores by nothing."""

    def score(self, images: Tensor) -> Scores:
        """Zeros, after a while."""
        time.sleep(len(images) / RATE)
        return Scores(torch.zeros(len(images)), torch.zeros(len(images), 8, 8))


class ScoreByWaiting(stream._TimedScoreImages):
    """The detect stage with a detector that waits."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._model.detector = lambda _: WaitingDetector()  # type: ignore[method-assign, assignment, union-attr, return-value]


class ReadNothing(Read):
    """Returns pixels without reading files."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows with pixels of one grey picture."""
        side = self.input.size
        pixels = np.full(side * side * 3, 128, np.uint8).tobytes()
        values = {
            "status": "ok",
            "width": side,
            "height": side,
            "bit_depth": 8,
            "channels": 3,
            "pixels": pixels,
            "retries": 0,
            "content_sha256": "0" * 64,
        }
        for field in READ:
            column = pa.array([values.get(field.name)] * len(rows), field.type)
            rows = rows.append_column(field, column)
        return rows


@contextlib.contextmanager
def _replaced(**classes: type) -> Iterator[None]:
    """The stages of a stream with other classes."""
    before = {name: getattr(stream, name) for name in classes}
    for name, kind in classes.items():
        setattr(stream, name, kind)
    try:
        yield
    finally:
        for name, kind in before.items():
            setattr(stream, name, kind)


def _first(listed: Inventory, count: int, folder: Path) -> Inventory:
    """An inventory of the first images of another."""
    table = listed.read().slice(0, count)
    place = str(folder / f"first-{count}.parquet")
    parquet.write(place, table.schema, [table])
    return Inventory(place)


def _run(listed: Inventory, workers: int, side: int, batch: int, folder: Path) -> Row:
    """Seconds an image of one run, from its first rows to its last."""
    model = chain.free_model(InputSettings(size=side))
    out = Out(str(folder / f"out-{workers}-{side}-{batch}-{len(listed)}"))
    seen: list[tuple[int, float, float]] = []

    def progress(stage: str, done: int, total: int, failed: int = 0, /) -> None:
        if done:
            seen.append((done, time.perf_counter(), time.process_time()))

    with connected(cpus=workers + 2):
        resources = Resources(workers=workers, batch=batch)
        shared = SharedModel.put(model)
        run = resume_or_start(listed, shared, out, ScoreSettings("none"), "2026-01-01")
        totals = score.score(run, FetchSettings(), resources, "0", progress)
    assert totals["statuses"] == {"ok": len(listed)}
    # The first rows come late, when processes have started.
    (had, began, driver), (done, ended, driver_end) = seen[0], seen[-1]
    wall_each, driver_each = (ended - began) / (done - had), (driver_end - driver) / (done - had)
    return Row(
        f"  {workers} workers, which allow {workers * RATE} images/s",
        f"{1 / wall_each:.0f} images/s",
        Time(driver_each, wall_each),
        note=f"driver {driver_each / wall_each:.0%} of a core, {1e6 * driver_each:.0f} us an image",
    )


def rows() -> Iterator[Row]:
    """Runs that read JPEGs from tars, then runs whose readers cost nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tars").mkdir()
        chain.draw_tars(folder / "tars")
        listed = chain.inventory(folder / "tars", folder / "inventory.parquet")
        with _replaced(_TimedScoreImages=ScoreByWaiting):
            yield Row(f"JPEGs of {chain.SIDE} px in tars, batches of 16", "")
            for workers in (1, 2, 4, 8, 16):
                some = _first(listed, min(_MOST, RATE * workers * _SECONDS), folder)
                yield _run(some, workers, chain.SIDE, 16, folder)
            for batch in (16, 64):
                yield Row(f"readers that cost nothing, 224 px, batches of {batch}", "")
                with _replaced(_TimedScoreImages=ScoreByWaiting, Read=ReadNothing):
                    for workers in (4, 8, 16):
                        some = _first(listed, min(_MOST, RATE * workers * _SECONDS), folder)
                        yield _run(some, workers, 224, batch, folder)
