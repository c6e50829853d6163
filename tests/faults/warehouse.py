"""Small drawn images, on disk or on S3, with an inventory, a model, and jobs that score them."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ops.archives.layouts import Layout, PathParser
from ops.archives.listing import IMAGE_SUFFIXES
from ops.detectors.model_folder import Model, write_model
from ops.images import synthetic_parts
from ops.images.resize import InputSettings
from ops.results import score_table
from ops.results.calibration import Calibration
from ops.results.part_calibration import PartCalibration
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.tables import take_inventory
from tests.conftest import ROOT, tiny_model

SIZE = 48
BROKEN = 7
VIEWS = ("left", "right")
#: Largest map values of held-out pictures: all drawn pictures reach 9.
PEAKS = (8.0, 8.2, 8.4)


@dataclass(frozen=True)
class Warehouse:
    """Where the images, their inventory and the model lie."""

    root: str
    images: int
    chunk_rows: int = 100

    @property
    def listed(self) -> str:
        return files.join(self.root, "inventory.parquet")

    @property
    def model(self) -> str:
        return files.join(self.root, "model")

    def words(self, out: str, *more: str) -> list[str]:
        """What jobs.score is told."""
        words = ["--inventory", self.listed, "--model", self.model, "--out", out]
        return [*words, "--chunk-rows", str(self.chunk_rows), "--resources.batch", "50", *more]


def build(root: str, images: int, tiled: bool = False) -> Warehouse:
    """Images that all differ; one of them is broken.

    `tiled`: each part has two views, the model sees tiles of them, and every map has regions.
    """
    pictures = [Image.fromarray(synthetic_parts.draw("washer", i, SIZE).picture) for i in range(50)]

    def put(i: int) -> None:
        varied = pictures[i % 50].copy()
        varied.putpixel((i % SIZE, i // SIZE % SIZE), (255, i % 256, i // 256))
        file = io.BytesIO()
        varied.save(file, "BMP")
        content = b"broken" if i == BROKEN else file.getvalue()
        name = f"{i // 2:05d}/{VIEWS[i % 2]}" if tiled else f"{i:05d}"
        files.write_bytes(files.join(root, "parts", "washer", f"{name}.bmp"), content)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(images)))
    found = Warehouse(root, images)
    pattern = "{product}/{part}/{view}.bmp" if tiled else "{product}/{name}"
    path_parser = PathParser(Layout(pattern, ""), "")
    parts = files.join(root, "parts")
    take_inventory.take([parts], found.listed, path_parser, IMAGE_SUFFIXES.split(), lambda *_: None)
    write_model(found.model, tiled_model() if tiled else tiny_model("washer"))
    return found


def tiled_model() -> Model:
    """The small model with tiles, of which a picture has four, pixel thresholds and parts."""
    model = tiny_model("washer")
    product = replace(model.card.products["washer"], peaks=Calibration(PEAKS))
    card = replace(
        model.card,
        input=InputSettings(size=32, fit="tile"),
        products={"washer": product},
        parts={"washer": PartCalibration(VIEWS, ((1.0, 2.0), (2.0, 1.0)))},
        region_false_alarm_rate=0.5,
    )
    return replace(model, card=card)


def start(job: str, words: list[str], log: str, changes: Mapping[str, str]) -> subprocess.Popen:
    """A job in a process of its own, which writes what it says to a file."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"} | changes
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", f"jobs.{job}", *words],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def published(out: str) -> pa.Table:
    """The one published table, without what tells one run or place from another."""
    (name,) = files.names(Out(out).scores())
    with files.open_read(files.join(Out(out).scores(), name)) as file:
        found = pq.read_table(file)
    assert score_table.violations(found) == []
    where = found.schema.get_field_index("map_uri")
    names = [uri and uri.removeprefix(uris.make(out)) for uri in found["map_uri"].to_pylist()]
    found = found.set_column(where, "map_uri", pa.array(names, pa.string()))
    return found.drop_columns(["scored_at", "run_id", "run_number"])


def regions(out: str) -> pa.Table:
    """The one published table of regions, without the id of its run."""
    (name,) = files.names(Out(out).regions())
    table = parquet.read(files.join(Out(out).regions(), name)).drop_columns(["run_id"])
    return table.sort_by([("image_id", "ascending"), ("number", "ascending")])


def drawn(out: str) -> dict[str, str]:
    """A hash of each map."""
    place = files.join(out, "maps")
    return {
        name: hashlib.sha256(files.read_bytes(files.join(place, name))).hexdigest()
        for name in files.names(place)
    }


class Witness(threading.Thread):
    """Reads everything under scores/ over and over, as an analyst might at any moment."""

    def __init__(self, out: str, images: int) -> None:
        super().__init__(daemon=True)
        self.scores, self.images = Out(out).scores(), images
        self.torn: list[str] = []
        self.looks = 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            self.looks += 1
            for name in files.names(self.scores):
                try:
                    data = files.read_bytes(files.join(self.scores, name))
                    rows = pq.read_table(io.BytesIO(data)).num_rows
                except Exception as error:
                    self.torn.append(f"{name}: {error}")
                    continue
                if rows != self.images:
                    self.torn.append(f"{name}: {rows} rows")

    def end(self) -> None:
        """Look no longer."""
        self._ended.set()
        self.join()
