"""A submitted job that is stopped in mid-run publishes nothing; the same command finishes it."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request

import pytest

from ops import storage
from ops.layout import Out
from tests.cluster import BIN
from tests.conftest import ROOT
from tests.faults.kills import STAGES, Case, done
from tests.faults.warehouse import published

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def ray_job(world, verb: str, *words: str) -> None:
    where = ["--address", world.cluster.dashboard]
    subprocess.run(
        [BIN / "ray", "job", verb, *where, *words],
        cwd=ROOT,
        env=world.cluster.environment,
        capture_output=True,
        timeout=300,
        check=True,
    )


def status(world, job: str) -> str:
    with urllib.request.urlopen(f"{world.cluster.dashboard}/api/jobs/{job}") as answer:
        return json.load(answer)["status"]


def stop(world, job: str) -> None:
    """What `ray job stop` asks for, without the seconds that its start takes."""
    address = f"{world.cluster.dashboard}/api/jobs/{job}/stop"
    with urllib.request.urlopen(urllib.request.Request(address, method="POST")) as answer:
        assert json.load(answer)["stopped"]


def files(out: str) -> dict[str, str]:
    return {item.name: item.version for item in storage.listing(out) if "mlflow" not in item.name}


def at_work(world) -> list[tuple[int, str]]:
    return [found for found in world.cluster.workers() if any(s in found[1] for s in STAGES)]


def test_a_stopped_job_writes_no_more_and_is_finished_by_the_same_command(world):
    case = Case("driver", 0.5, "none")
    table, _, _ = world.undisturbed(case)
    out = world.place("disk", "stopped")
    command = ["--", "python", "-m", "jobs.score"]
    command += world.warehouse("disk").words(out, "--maps", case.maps)
    ray_job(
        world, "submit", "--no-wait", "--submission-id", "first", "--working-dir", ".", *command
    )
    deadline = time.monotonic() + 120
    while not 0.2 <= done(world, out) < 1:
        assert time.monotonic() < deadline
        assert status(world, "first") in {"PENDING", "RUNNING"}
        time.sleep(0.05)
    assert at_work(world)
    stop(world, "first")
    while status(world, "first") != "STOPPED":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    while at_work(world):  # Ray ends a job's workers behind it
        assert time.monotonic() < deadline
        time.sleep(0.1)
    left = files(out)
    assert storage.names(Out(out).scores()) == []
    time.sleep(5)
    assert files(out) == left
    assert at_work(world) == []
    ray_job(world, "submit", "--submission-id", "second", "--working-dir", ".", *command)
    assert status(world, "second") == "SUCCEEDED"
    assert published(out).equals(table)
    assert storage.names(Out(out).work()) == []
