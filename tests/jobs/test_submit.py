"""Jobs as users start them: submitted to a running cluster, with the project's folder shipped."""

import json
import os
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from ops.archives.inventory import Inventory
from ops.results import score_table
from ops.storage import files, parquet
from ops.storage.paths import Out
from tests.cluster import BIN, Cluster
from tests.conftest import ROOT, draw_archive, tiny_fit

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.alone]


@dataclass
class Head:
    """A head node, reached through its job server alone."""

    cluster: Cluster

    @property
    def folder(self) -> Path:
        return self.cluster.folder

    def submit(self, name: str, *words: str) -> tuple[str, str]:
        """Submit a job as the README says and wait for its end; its status and its log."""
        job = f"job-{time.monotonic_ns()}"
        command = [BIN / "ray", "job", "submit", "--working-dir", "."]
        command += ["--address", self.cluster.dashboard, "--submission-id", job]
        command += ["--", "python", "-m", f"jobs.{name}", *words]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.cluster.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        with urllib.request.urlopen(f"{self.cluster.dashboard}/api/jobs/{job}") as answer:
            status = json.load(answer)["status"]
        assert (done.returncode == 0) == (status == "SUCCEEDED")
        return status, done.stdout + done.stderr


@pytest.fixture(scope="module")
def head():
    cluster = Cluster(os.environ, 4)
    yield Head(cluster)
    cluster.end()


@dataclass
class Night:
    """Four jobs, submitted one after the other; the tests below look at what they left."""

    out: Out
    ended: dict[str, tuple[str, str]]

    @property
    def record(self) -> dict:
        (item,) = files.listing(self.out.runs())
        return files.read_json(files.join(self.out.runs(), item.name))


@pytest.fixture(scope="module")
def night(head, tmp_path_factory):
    folder = tmp_path_factory.mktemp("night")
    archive = str(draw_archive(folder / "archive"))
    Path(archive, "washer/test/good/broken.png").write_bytes(b"no picture")
    listed, model, out = (str(folder / name) for name in ("parts.parquet", "model", "out"))
    given = ["--inventory", listed, "--out", out]
    ended = {
        "inventory": head.submit(
            "inventory", "--archive", archive, "--layout", "mvtec", "--output", listed
        ),
        "fit": head.submit("fit", *given, "--model-folder", model, *tiny_fit()),
        "score": head.submit(
            "score", *given, "--model", "models:/nightloupe@champion", "--maps", "all"
        ),
        "evaluate": head.submit("evaluate", "--out", out, "--published", "patchcore-1"),
    }
    return Night(Out(out), ended)


def test_every_job_succeeds(night):
    failed = {name: log for name, (status, log) in night.ended.items() if status != "SUCCEEDED"}
    assert failed == {}


def test_logs_hold_words_for_people_and_no_noise(night):
    logs = {name: log for name, (_, log) in night.ended.items()}
    assert "35 images and 8 masks listed" in logs["inventory"]
    assert "registered: models:/nightloupe@champion" in logs["fit"]
    assert "34 ok" in logs["score"]
    assert "1 unreadable" in logs["score"]
    assert "mean" in logs["evaluate"]
    assert "published: mvtec/patchcore-1" in logs["evaluate"]
    noise = ("Warning", "WARNING", "Traceback", "(pid=", "Dataset")
    for name, log in logs.items():
        said = log.split("Running entrypoint")[1].split("---")[0]
        assert not [word for word in noise if word in said], (name, said)


def test_the_outputs_are_there(night):
    record = night.record
    table = parquet.read(record["totals"]["table"])
    assert len(table) == len(Inventory(record["inventory"])) == 35
    assert score_table.violations(table) == []
    assert len(list(files.listing(night.out.maps(record["model_id"])))) == 34
    metrics = parquet.read(night.out.evaluation(record["run_id"]))
    assert metrics["product"].to_pylist() == ["fabric", "washer", "mean"]


def test_only_what_jobs_need_is_shipped(night, head):
    places = head.folder.glob("session_latest/runtime_resources/working_dir_files/_ray_pkg_*")
    shipped = next(place for place in places if place.is_dir())
    files = [file for file in shipped.rglob("*") if file.is_file()]
    names = {str(file.relative_to(shipped)) for file in files}
    assert {"jobs/score.py", "pipelines/scoring/score.py", "ops/results/score_table.py"} <= names
    foreign = [
        name
        for name in names
        if name.startswith((".git/", ".venv/", ".ci/", "docs/", "tests/", "demo/", "out/"))
        or name.endswith((".parquet", ".db", ".png", ".safetensors", ".pyc"))
    ]
    assert foreign == []
    assert sum(file.stat().st_size for file in files) < 2**21  # the code has half of that


def test_a_job_that_breaks_its_promise_fails(night, head, tmp_path):
    for number in range(4):
        Path(tmp_path, f"{number}.png").write_bytes(b"no picture")
    model = f"{night.out.root}/../model"
    words = ["--archive", str(tmp_path), "--product", "washer", "--model", model]
    status, log = head.submit("score", *words, "--out", str(tmp_path / "out"), "--max-failed", "1")
    assert status == "FAILED"
    assert "4 of 4 images failed, more than --max_failed allows (1): 4 unreadable" in log
    assert "Traceback" not in log
