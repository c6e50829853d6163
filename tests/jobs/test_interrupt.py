"""Ctrl-C in a fit, while Ray Train runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, draw_archive, tiny_fit
from tests.faults.processes import tree

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def is_training(pid: int) -> bool:
    """Whether a job has started the workers of Ray Train."""
    commands = []
    for descendant in tree(pid):
        try:
            commands.append(Path(f"/proc/{descendant}/cmdline").read_bytes())
        except OSError:  # it has ended
            continue
    return any(b"RayTrainWorker" in command for command in commands)


def test_an_interrupted_fit_says_how_to_continue_and_exits_with_130(tmp_path):
    archive, log = draw_archive(tmp_path / "archive", train=200), tmp_path / "log"
    words = ["--archive", str(archive), "--layout", "mvtec", "--out", str(tmp_path / "out")]
    # A shell starts its background jobs, and so their children, with SIGINT ignored.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "jobs.fit"]
    with log.open("wb") as file:
        job = subprocess.Popen(
            [*command, *words, *tiny_fit(), "--resources.batch", "2"],
            cwd=ROOT,
            env=os.environ
            | {"RAY_ADDRESS": "", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        while not is_training(job.pid):
            assert job.poll() is None, log.read_text()
            time.sleep(0.1)
        job.send_signal(signal.SIGINT)
        assert job.wait(180) == 130, log.read_text()
    finally:
        job.kill()
    assert log.read_text().splitlines()[-1] == ("stopped; start the same command again to continue")
