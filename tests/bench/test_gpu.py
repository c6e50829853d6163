"""The check of a GPU imports nothing that a bare machine lacks."""

import json
import subprocess
import sys

import pytest

from tests.bench.gpu import cluster, runner
from tests.bench.gpu.part import Figure
from tests.conftest import ROOT

#: What this project needs and a bare machine does not have.
ABSENT = """aiobotocore aiohttp boto3 botocore duckdb FrEIA fsspec imagecodecs jinja2 jsonargparse
matplotlib mlflow pandas pi_heif pytest ray s3fs sklearn tenacity tifffile tqdm"""
PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in ABSENT and not (top == "FrEIA" and sys.path[-1].endswith("bundle/site")):
            raise ModuleNotFoundError(name)

ABSENT = set(sys.argv[2].split())
sys.meta_path.insert(0, Refuse())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in ABSENT else find(name)
from pathlib import Path
from tests.bench.gpu import bare, command, runner
print(*bare.make_importable(Path(sys.argv[1])))
for part in runner.PARTS:
    __import__(f"tests.bench.gpu.{part}")
"""


@pytest.mark.slow
def test_its_parts_are_imported_where_nothing_but_torch_and_its_likes_is_installed(tmp_path):
    import FrEIA

    site = tmp_path / "bundle" / "site"
    site.mkdir(parents=True)
    (site / "FrEIA").symlink_to(next(iter(FrEIA.__path__)))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "bundle"), ABSENT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["FrEIA", "imagecodecs", "tifffile", "pi_heif"]


def test_a_part_that_crashes_or_hangs_keeps_what_it_found(tmp_path, monkeypatch):
    ran = []

    class Process:
        def __init__(self, command, stderr):
            self.name = command[command.index("--part") + 1]
            figure = {"what": "x", "value": 1.5, "unit": "s", "note": "", "right": True}
            (tmp_path / f"{self.name}.jsonl").write_text(json.dumps(figure) + "\n")
            stderr.write("Traceback\nCUDA error: an illegal memory access\n")
            stderr.flush()

        def wait(self, seconds=None):
            ran.append((self.name, seconds))
            if self.name == "search" and seconds is not None:
                raise subprocess.TimeoutExpired("search", seconds)
            return 1

        def kill(self):
            ran.append("killed")

    monkeypatch.setattr(runner.subprocess, "Popen", Process)
    parts = ["ceilings", "search"]
    figures = runner.run_all(tmp_path / "bundle", tmp_path, "cpu", 100.0, parts)
    assert [(f["part"], f["what"], f["right"]) for f in figures] == [
        ("ceilings", "x", True),
        ("ceilings", "the part", False),
        ("search", "x", True),
        ("search", "the part", False),
    ]
    assert figures[1]["note"] == "failed: CUDA error: an illegal memory access"
    assert figures[3]["note"] == "ended after 100 s"
    assert [name for name, _ in ran[:2]] == ["ceilings", "search"]
    assert 49 < ran[0][1] <= 50  # the time of the search is left to it
    assert 99 < ran[1][1] <= 100
    assert ran[2:] == ["killed", ("search", None)]
    written = json.loads((tmp_path / runner.RESULTS).read_text())
    assert written["figures"] == figures
    table = (tmp_path / runner.TABLE).read_text()
    assert "cpu" in table.splitlines()[0]
    assert "2 of 4 checks passed. A trial of the check on a CPU" in table
    assert "| search | the part |" in table


def test_a_cluster_runs_the_same_parts_on_the_bundle_it_was_sent(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "00.jpg").write_bytes(b"pixels")
    (tmp_path / "content.json").write_text("{}")

    def run_all(bundle, out, device, budget, parts):
        assert (bundle / "images" / "00.jpg").read_bytes() == b"pixels"
        assert (device, budget, parts) == ("cuda", 400.0, ["search"])
        out.mkdir()
        (out / runner.TABLE).write_text("rows")

    monkeypatch.setattr(runner, "run_all", run_all)
    found = cluster.on_worker(cluster.packed(tmp_path), 400.0, ["search"])
    assert found == {runner.TABLE: b"rows"}


def test_a_figure_is_a_row_of_the_table():
    figure = Figure("greedy | ids", 0.000123456, "s", "a | b", right=False).__dict__
    assert (
        runner.as_line("fits", figure) == "| fits | greedy / ids | 0.0001235 s | FAILED | a / b |"
    )
