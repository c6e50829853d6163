"""A drawn archive with broken files, a model that is fitted on it, and the scores of all of it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import Inventory
from ops.archives.layouts import LAYOUTS, PathParser
from ops.archives.listing import IMAGE_SUFFIXES
from ops.detectors.model_folder import read_model, write_model
from ops.detectors.patchcore import PatchCoreSettings
from ops.features.backbone import BackboneSettings
from ops.images.resize import InputSettings
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel
from pipelines.fitting import fit
from pipelines.fitting.request import FitRequest
from pipelines.scoring import score
from pipelines.scoring.resume import resume_or_start
from pipelines.scoring.run import Run, ScoreSettings
from pipelines.tables import take_inventory
from tests.conftest import draw_archive

SLOTS = Resources(workers=2, cpus=1, reader_cpus=1, batch=4)
BROKEN = {
    "cut.png": "unreadable",
    "empty.png": "unreadable",
    "text.png": "unreadable",
    "moving.gif": "unsupported",
    "gone.png": "missing",
}


def nothing(*_):
    """Nobody watches."""


def take(folder, out):
    path_parser = PathParser(LAYOUTS["mvtec"], "")
    take_inventory.take([str(folder)], str(out), path_parser, IMAGE_SUFFIXES.split(), nothing)
    return Inventory(str(out))


def request(**changes):
    values = {
        "method": "patchcore",
        "settings": PatchCoreSettings(coreset_ratio=0.1, embedding="concat"),
        "backbone": BackboneSettings("squeezenet1_1", "features.3,features.6", "random"),
        "input": InputSettings(64),
        "holdout": 0.25,
        "false_alarm_rate": 0.3,
    }
    return FitRequest(**values | changes)


@dataclass
class World:
    """What tests of the archive share."""

    inventory: Inventory
    model: SharedModel
    out: Out
    run: Run
    totals: dict
    table: pa.Table


def scored_archive(tmp_path_factory):
    """Fit on a drawn archive, then score all of it together with broken files."""
    folder = draw_archive(tmp_path_factory.mktemp("archive"))
    place = folder / "washer" / "test" / "good"
    whole = (place / "009.png").read_bytes()
    moving = io.BytesIO()
    frames = [Image.new("L", (8, 8), value) for value in (0, 255)]
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    content = {"cut.png": whole[:300], "empty.png": b"", "text.png": b"no", "gone.png": whole}
    for name, data in (content | {"moving.gif": moving.getvalue()}).items():
        (place / name).write_bytes(data)
    listed = take(folder, tmp_path_factory.mktemp("i") / "inventory.parquet")
    (place / "gone.png").unlink()
    model = fit.fit(listed, request(), SLOTS, nothing)
    location = str(tmp_path_factory.mktemp("models") / "model")
    write_model(location, model)
    shared = SharedModel.put(read_model(location))
    out = Out(str(tmp_path_factory.mktemp("out")))
    run = resume_or_start(listed, shared, out, ScoreSettings("all", True, 10), "2026-11-20")
    totals = score.score(run, FetchSettings(backoff=0.01), SLOTS, "50%", nothing)
    return World(listed, shared, out, run, totals, parquet.read(totals["table"]))
