"""A short draw of the campaign: one kill of each kind, and one job that is stopped in mid-run."""

from __future__ import annotations

import json
import random
import subprocess
import time
import urllib.request

import pytest

from ops.storage import files
from ops.storage.paths import Out
from tests.cluster import BIN
from tests.conftest import ROOT
from tests.faults.kills import (
    ATTEMPTS,
    HEAD,
    STAGES,
    Case,
    Ending,
    attempt,
    campaign,
    cases,
    done,
    world_of,
)
from tests.faults.warehouse import published, regions

SEED = 11
#: Small images of the world.
IMAGES = 800


@pytest.fixture(scope="module")
def world():
    """Three nodes, an S3 server, a tracker, and small parts; the environment names its servers.

    So it must end before a test of another module begins.
    """
    with world_of(IMAGES) as found:
        yield found


def test_a_draw_has_as_many_of_each_kind_and_is_the_same_for_a_seed():
    drawn = cases(20, 1)
    assert drawn == cases(20, 1) != cases(20, 2)
    victims = [case.victim for case in drawn]
    assert [victims.count(name) for name in ("worker", "raylet", "driver")] == [5, 5, 5]
    assert victims.count("s3") + victims.count("tracker") == 5
    assert {case.maps for case in drawn} == {"none", "all"}
    assert all(0.2 <= case.when <= 1 for case in drawn)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    "victim",
    ["worker", "raylet", "driver", "tracker", pytest.param("s3", marks=pytest.mark.campaign)],
)
def test_whatever_is_killed_the_table_is_that_of_a_quiet_night(world, victim):
    when = random.Random(f"{SEED}-{victim}").uniform(0.3, 0.9)
    (ending,) = campaign(world, [Case(victim, when, "none")], SEED)
    print(HEAD, ending.line(1), sep="\n")
    assert ending.wrong == []
    assert ending.rows == world.images
    assert 1 <= len(ending.did) <= ATTEMPTS
    if victim == "driver":
        assert ending.did == ["killed", "finished"]
    if victim in {"worker", "raylet"}:
        assert ending.did == ["finished"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.alone
def test_a_run_that_ends_before_its_kill_counts_for_nothing(world):
    late = Case("worker", 100.0, "none")
    assert attempt(world, late, "late", random.Random(0)) is None


def test_a_line_names_what_is_wrong():
    ending = Ending(Case("driver", 0.5), "driver", 0.25, ["killed", "finished"], 31.4, 99)
    assert ending.line(3) == (
        "| 3 | driver | disk, maps none | 25% | killed, finished | 31 | 99 | yes |"
    )
    ending.wrong.append("another table")
    assert ending.line(3).endswith("| 99 | another table |")


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


def told(world, job: str, what: str = "") -> dict:
    address = f"{world.cluster.dashboard}/api/jobs/{job}{what}"
    with urllib.request.urlopen(address) as answer:
        return json.load(answer)


def status(world, job: str) -> str:
    return told(world, job)["status"]


def stop(world, job: str) -> None:
    """What `ray job stop` asks for, without the seconds that its start takes."""
    address = f"{world.cluster.dashboard}/api/jobs/{job}/stop"
    with urllib.request.urlopen(urllib.request.Request(address, method="POST")) as answer:
        assert json.load(answer)["stopped"]


def versions(out: str) -> dict[str, str]:
    return {item.name: item.version for item in files.listing(out) if "mlflow" not in item.name}


def at_work(world) -> list[tuple[int, str]]:
    return [found for found in world.cluster.workers() if any(s in found[1] for s in STAGES)]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.alone
def test_a_stopped_job_writes_no_more_and_is_finished_by_the_same_command(world):
    case = Case("driver", 0.5, "none")
    tables, _, _ = world.undisturbed(case)
    out = world.place("disk", "stopped")
    # Not --working-dir: the nodes share this machine's disk, and each node's agent would remove
    # and unpack the uploaded folder in the same place, while the job runs in it.
    command = ["--runtime-env-json", json.dumps({"env_vars": {"PYTHONPATH": str(ROOT)}})]
    command += ["--", "python", "-m", "jobs.score"]
    command += world.warehouse("disk").words(out, "--maps", case.maps)
    ray_job(world, "submit", "--no-wait", "--submission-id", "first", *command)
    deadline = time.monotonic() + 120
    while not 0.2 <= done(world, out) < 1:
        assert time.monotonic() < deadline
        found = told(world, "first")
        assert found["status"] in {"PENDING", "RUNNING"}, told(world, "first", "/logs")["logs"]
        time.sleep(0.05)
    assert at_work(world)
    stop(world, "first")
    while status(world, "first") != "STOPPED":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    while at_work(world):  # Ray ends a job's workers behind it
        assert time.monotonic() < deadline
        time.sleep(0.1)
    left = versions(out)
    assert files.names(Out(out).scores()) == []
    time.sleep(5)
    assert versions(out) == left
    assert at_work(world) == []
    ray_job(world, "submit", "--submission-id", "second", *command)
    assert status(world, "second") == "SUCCEEDED"
    assert published(out).equals(tables.scores)
    assert regions(out).equals(tables.regions)
    assert files.names(Out(out).work()) == []
