"""Two nights started at once over one folder, as processes: one works, the other leaves with 75."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import entry
from ops.detectors.model_folder import write_model
from ops.images import synthetic_parts
from ops.results import score_table
from tests.conftest import LOOPBACK_ONLY, ROOT, tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.alone]
IMAGES = 60


def night(folder: Path) -> subprocess.Popen:
    environment = os.environ | LOOPBACK_ONLY | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    words = ["--archive", folder / "parts", "--model", folder / "model", "--out", folder / "out"]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.nightly", *map(str, words), "--maps", "none"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_of_two_nights_at_once_one_works_and_the_other_leaves(tmp_path):
    (tmp_path / "parts").mkdir()
    for number in range(IMAGES):
        picture = Image.fromarray(synthetic_parts.draw("washer", number, 48).picture)
        picture.save(tmp_path / "parts" / f"{number:02d}.png")
    write_model(str(tmp_path / "model"), tiny_model("parts"))
    started = time.monotonic()
    both = [night(tmp_path), night(tmp_path)]
    # Who leaves does so long before the other is done.
    while all(one.poll() is None for one in both) and time.monotonic() < started + 100:
        time.sleep(0.05)
    left = next(one for one in both if one.poll() is not None)
    works = next(one for one in both if one is not left)
    assert works.poll() is None
    told = left.communicate()[0]
    assert left.returncode == entry.BUSY, told
    assert f"process {works.pid} on " in told
    assert told.endswith("nothing to do here\n")
    said = works.communicate(timeout=100)[0]
    assert works.returncode == 0, said
    assert f"{IMAGES} images: {IMAGES} ok" in said
    (table,) = (tmp_path / "out").glob("scores/**/*.parquet")
    rows = pq.read_table(table, partitioning=None)
    assert score_table.violations(rows) == []
    assert len(set(rows["image_id"].to_pylist())) == len(rows) == IMAGES
    (record,) = (tmp_path / "out" / "nights").iterdir()
    assert json.loads(record.read_text())["pid"] == works.pid
