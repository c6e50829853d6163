"""What a job prints while its workers are killed: its own lines, and nothing of Ray's."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import LOOPBACK_ONLY, ROOT
from tests.faults.warehouse import build

#: jobs.score, where one image kills each reader, and one kills the detector that first scores it.
JOB = textwrap.dedent("""
    import functools
    from jobs import score as job
    from jobs.cli import entry
    from pipelines.scoring import score, stream
    from tests.pipelines.deadly import DeadlyScoreImages, DeadlyStream

    score.ScoringStream = functools.partial(DeadlyStream, victims=("kills-readers.bmp",))
    stream._TimedScoreImages = DeadlyScoreImages
    entry.start(job.main)
""")


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_succeeds_prints_nothing_of_the_workers_that_were_killed(tmp_path):
    warehouse = build(str(tmp_path / "warehouse"), 3)
    parts = tmp_path / "warehouse" / "parts" / "washer"
    (parts / "00001.bmp").rename(parts / "kills-detector.bmp")
    (parts / "00002.bmp").rename(parts / "kills-readers.bmp")
    words = ["--archive", str(parts.parent), "--pattern", "{product}/{name}", "--maps", "none"]
    words += ["--model", warehouse.model, "--out", str(tmp_path / "out")]
    # A chunk, and so a block, of each image.
    words += ["--chunk_rows", "1", "--resources.workers", "1"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    job = subprocess.run(
        [sys.executable, "-c", JOB, *words],
        cwd=ROOT,
        env=environment | LOOPBACK_ONLY | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=840,
        check=False,
    )
    assert job.returncode == 0, job.stdout
    assert (parts / "kills-detector.bmp.killed").exists()
    assert "3 images: 1 crashed_worker, 2 ok" in job.stdout
    for word in ("Traceback", "actor", "raylet", "retries remaining"):
        assert word.lower() not in job.stdout.lower()
