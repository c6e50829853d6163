"""What the review page takes: `python -m tests.bench.review 1000000 [TREE]`.

A list of so many flagged parts is read, paged and decided, and a JPEG of 50 megapixels is shown
from a local tar, and from one on an S3 server of this machine. With TREE, another checkout of this
project, its code does the same in turn. Printed are medians of three processes: seconds by the
clock, and in brackets those of CPU of the process.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from ops.images.decode import DecodeSettings
from ops.images.resize import InputSettings
from ops.results import score_table
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from tests.conftest import ROOT, SECRET

REPEATS = 3
MODEL, RUN = "a" * 32, "2026-11-20-0000"
SIZE = 8660, 5773
_ROWS = """
    SELECT md5(n::VARCHAR) AS image_id, 'file:///line/2026/tiles/part-' || n || '.png' AS uri,
           ['bolt', 'nut', 'washer'][1 + n % 3] AS product, md5('c' || n) AS content_sha256,
           8660 AS width, 5773 AS height, 8 AS bit_depth, 'ok' AS status, random() AS score,
           0.001 * (1 + n % 10) AS p_value, true AS is_anomalous, 1 AS peak_x, 2 AS peak_y,
           $model AS model_id, $run AS run_id, 1 AS run_number,
           date_trunc('second', now()) AS scored_at
    FROM range($count) AS numbers(n)
"""
#: What each process does, with the code of a tree.
_STEPS = """
import json, sys, time
from ops.archives.fetch import FetchSettings
from ops.storage.paths import Out
from pipelines.review import queue
from pipelines.review.filters import Filter
from pipelines.review.pictures import Pictures
from pipelines.tables import model_names, run_records
told = {}
def step(name, call, times=1):
    start = time.perf_counter(), time.process_time()
    for number in range(times):
        answer = call(number)
    told[name] = [(now - then) / times for now, then in
                  zip((time.perf_counter(), time.process_time()), start)]
    return answer
root, archived, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
out, flagged = Out(root), Filter(verdict="anomalous")
opened = queue.opened(out, model_names.named(run_records.finished(out)))
parts = step("start", lambda _: opened.__enter__())
rows = step("first page", lambda _: parts.page(flagged, 60), 5)
step("counts", lambda _: parts.counts(flagged), 5)
step("last page", lambda _: parts.page(flagged, 60, count - 60), 5)
step("next part", lambda n: parts.after(flagged, count // 2 + n, 1), 5)
step("position", lambda _: parts.position(flagged, count // 2), 5)
step("part by id", lambda n: parts.part(rows[n]["image_id"]), 5)
step("choices of filters", lambda _: (parts.overview(), parts.fields()))
step("decision", lambda n: parts.decide(rows[n]["image_id"], "defect", "ann"), 10)
step("text filter", lambda _: parts.counts(Filter(text="part-77")))
opened.__exit__(None, None, None)
for where, row in archived.items():
    pictures = Pictures(out, FetchSettings())
    step(f"{where}: view of 1,024 px", lambda _: pictures.crop(row, parts.record, None, 1024))
    box = (4000, 2000, 5024, 3024)
    step(f"{where}: first detail", lambda _: pictures.crop(row, parts.record, box, 1024))
    step(f"{where}: next detail", lambda _: pictures.crop(row, parts.record, box, 1024))
print(json.dumps(told))
"""


def draw(root: str, count: int) -> None:
    """An output folder with a run of so many flagged parts."""
    out = Out(root)
    values = {"model": MODEL, "run": RUN, "count": count}
    rows = duckdb.connect().sql(_ROWS, params=values).to_arrow_table()
    for field in score_table.SCHEMA:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(count, field.type))
    parquet.write(out.table(RUN[:10], RUN), score_table.SCHEMA, [rows])
    record = {"run_id": RUN, "night": RUN[:10], "number": 1, "started": "2026-11-20T00"}
    record |= {"model_id": MODEL, "method": "padim", "inventory": f"{root}/inventory.parquet"}
    record |= {"input": asdict(InputSettings()), "decode": asdict(DecodeSettings())}
    files.write_json(out.run(RUN), record | {"totals": {"images": count}})


def archive(place: str) -> dict[str, Any]:
    """The row of a picture of 50 megapixels in a tar at a place, local or on S3."""
    noise = np.random.default_rng(0).normal(120, 12, (SIZE[1], SIZE[0], 3))
    picture = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    shapes = ImageDraw.Draw(picture)
    for number in range(200):
        left, top = number * 37 % 8000, number * 71 % 5000
        shapes.ellipse((left, top, left + 400, top + 300), (number, 90, 255 - number))
    jpeg, tar = io.BytesIO(), io.BytesIO()
    picture.save(jpeg, "JPEG", quality=90)
    data = jpeg.getvalue()
    with tarfile.open(fileobj=tar, mode="w") as content:
        info = tarfile.TarInfo("board.jpg")
        info.size = len(data)
        content.addfile(info, io.BytesIO(data))
    files.write_bytes(place, tar.getvalue())
    row = {"image_id": "i", "run_id": RUN, "uri": f"{uris.make(place)}#board.jpg"}
    row |= {"member": tarfile.BLOCKSIZE, "bytes": len(data), "map_uri": None}
    return row | {
        "content_sha256": hashlib.sha256(data).hexdigest(),
        "width": SIZE[0],
        "height": SIZE[1],
    }


def measured(tree: Path, *words: str) -> dict[str, list[float]]:
    """Seconds by the clock and of CPU of each step, with the code of a tree."""
    done = subprocess.run(
        [sys.executable, "-c", _STEPS, *words],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    told: dict[str, list[float]] = json.loads(done.stdout)
    return told


def main(words: list[str]) -> None:
    """Measure with so many parts (1,000,000), here and in another tree if one is named."""
    count = int(words[0]) if words else 1_000_000
    trees = [ROOT, *(Path(word).resolve() for word in words[1:])]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    os.environ |= {**SECRET, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        tempfile.TemporaryDirectory(prefix="nightloupe-") as folder,
        subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            _await(port)
            _measure(folder, count, trees)
        finally:
            process.terminate()


def _await(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the S3 server does not start")


def _measure(folder: str, count: int, trees: list[Path]) -> None:
    from ops.storage.s3 import file_system

    file_system().call_s3("create_bucket", Bucket="bench")
    draw(folder, count)
    rows = {"local": archive(f"{folder}/a.tar"), "S3": archive("s3://bench/a.tar")}
    runs = []
    for _ in range(REPEATS):
        runs.append([measured(tree, folder, json.dumps(rows), str(count)) for tree in trees])
        files.remove_folder(Out(folder).labels())
    print("| step | s here (CPU) | s there (CPU) |\n|---|---|---|")
    for name in runs[0][0]:
        cells = [
            [statistics.median(run[tree][name][kind] for run in runs) for kind in (0, 1)]
            for tree in range(len(trees))
        ]
        print(f"| {name} | " + " | ".join(f"{w:.3f} ({cpu:.3f})" for w, cpu in cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
