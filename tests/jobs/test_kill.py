"""The driver dies by SIGKILL at three moments; the same command finishes the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ops import scores, specimens
from ops.model import write_model
from tests.conftest import ROOT, tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
IMAGES, PART = 2000, 100


def job(name, *arguments):
    """Start a job in a process of its own, with a small cluster of its own."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", f"jobs.{name}", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(process) -> str:
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory) -> Path:
    """Two thousand small drawn images, an inventory of them, and a model."""
    folder = tmp_path_factory.mktemp("warehouse")
    (folder / "parts" / "washer").mkdir(parents=True)
    pictures = [Image.fromarray(specimens.draw("washer", i, 48).picture) for i in range(50)]
    for i in range(IMAGES):
        varied = pictures[i % 50].copy()
        varied.putpixel((i % 48, i // 48), (255, i % 256, 0))
        varied.save(folder / "parts" / "washer" / f"{i:04d}.bmp")
    (folder / "parts" / "washer" / "0007.bmp").write_bytes(b"broken")
    listed = folder / "inventory.parquet"
    pattern = ["--pattern", "{product}/{name}"]
    done(job("inventory", "--archive", folder / "parts", *pattern, "--out", listed))
    write_model(str(folder / "model"), tiny_model("washer"))
    return folder


def score(warehouse, out):
    return job(
        "score",
        "--inventory",
        warehouse / "inventory.parquet",
        "--model",
        warehouse / "model",
        "--out",
        out,
        "--slots.batch",
        PART,
        "--part-rows",
        PART,
        "--maps",
        "none",
    )


def table(out):
    """The published rows, without what tells one run from another."""
    (file,) = Path(out).glob("scores/**/*.parquet")
    found = pq.read_table(file, partitioning=None)
    assert scores.violations(found) == []
    return found.drop_columns(["scored_at", "run_id"])


@pytest.fixture(scope="module")
def undisturbed(warehouse):
    """The table of a run that nothing happened to."""
    done(score(warehouse, warehouse / "undisturbed"))
    found = table(warehouse / "undisturbed")
    assert len(found) == IMAGES
    assert found["status"].to_pylist().count("ok") == IMAGES - 1
    return found


class Witness(threading.Thread):
    """Reads everything under scores/ over and over, as an analyst might at any moment."""

    def __init__(self, out):
        super().__init__(daemon=True)
        self.out, self.torn, self.looks, self.ended = Path(out), [], 0, threading.Event()

    def run(self):
        while not self.ended.wait(0.02):
            self.looks += 1
            for file in self.out.glob("scores/**/*"):
                if not file.is_file() or file.name.startswith("."):
                    continue
                try:
                    rows = pq.read_table(file, partitioning=None).num_rows
                except Exception as error:
                    self.torn.append(f"{file}: {error}")
                    continue
                if rows != IMAGES:
                    self.torn.append(f"{file}: {rows} rows")


@pytest.mark.parametrize("parts", [0, 4, 15])
def test_a_killed_run_is_finished_by_the_same_command(warehouse, undisturbed, tmp_path, parts):
    witness = Witness(tmp_path)
    witness.start()
    first = score(warehouse, tmp_path)
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("_work/*/part-*.parquet"))) < parts or not list(
        tmp_path.glob("_work/*/started")
    ):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not list(tmp_path.glob("scores/**/*.parquet"))
    output = done(score(warehouse, tmp_path))
    witness.ended.set()
    witness.join()
    assert table(tmp_path).equals(undisturbed)
    assert f"{IMAGES} images" in output
    assert witness.torn == []
    assert witness.looks > 10
    assert not list(tmp_path.glob("_work/*"))
    (record,) = tmp_path.glob("runs/*.json")
    assert f'"images": {IMAGES}' in record.read_text()
