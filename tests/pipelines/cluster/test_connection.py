"""A command whose cluster stops to answer: it says so, and ends within its limit and a grace."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ops.errors import UserError
from ops.storage import files
from ops.storage.paths import Out
from pipelines.cluster import answers, connection
from pipelines.cluster.answers import GRACE
from tests.faults.processes import tree
from tests.faults.warehouse import build, start

STALL = 60
#: What the command lines of each victim hold.
VICTIMS = {"raylet": "/raylet ", "gcs": "gcs_server", "worker": "ray::MapWorker"}


@pytest.fixture
def stuck(monkeypatch):
    """A cluster of this process that never answers; the process that it started."""
    monkeypatch.setattr(answers, "_silent", threading.Event())
    monkeypatch.setattr(connection, "GRACE", 0.1)
    monkeypatch.setattr(connection.ray, "shutdown", threading.Event().wait)
    connection._connected.set()
    own = subprocess.Popen(["sleep", "100"])
    monkeypatch.setattr(connection, "_started_processes", lambda: [own.pid])
    yield own
    own.kill()
    own.wait()


def test_a_cluster_that_does_not_answer_is_left_and_what_was_started_is_ended(stuck):
    began = time.monotonic()
    assert connection.leave() is False
    assert time.monotonic() - began < 5
    assert stuck.wait(10) == -signal.SIGKILL
    assert connection.leave() is False


def test_a_cluster_of_somebody_else_is_left_alone(monkeypatch):
    monkeypatch.setattr(answers, "_silent", threading.Event())
    monkeypatch.setattr(connection.ray, "shutdown", None)
    assert connection.leave() is True


def test_a_cluster_that_cannot_be_joined_is_named_with_the_cause(monkeypatch):
    def refuse(**_):
        raise ConnectionError("Failed to connect") from RuntimeError("Traceback:\n x\nno raylet")

    monkeypatch.setattr(connection.ray, "init", refuse)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1, or no node .*: no raylet$"):
        connection.connected("127.0.0.1:1").__enter__()


def found(pid: int, name: str) -> list[int]:
    """Descendants whose command lines hold a name."""
    matching = []
    for descendant in tree(pid):
        try:
            words = Path(f"/proc/{descendant}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
        if name in words:
            matching.append(descendant)
    return matching


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.campaign
@pytest.mark.parametrize("victim", list(VICTIMS))
def test_a_run_whose_cluster_is_stopped_ends_within_its_limit_with_a_sentence(tmp_path, victim):
    warehouse, log, out = build(str(tmp_path), 2000), tmp_path / "log", str(tmp_path / "out")
    words = warehouse.words(out, "--maps", "none", "--resources.stall_timeout", str(STALL))
    job = start("score", words, str(log), {"RAY_ADDRESS": ""})
    stopped: list[int] = []
    try:
        while not list(Path(out).glob("_work/*/part-*.parquet")):
            assert job.poll() is None, log.read_text()
            time.sleep(0.1)
        stopped = found(job.pid, VICTIMS[victim])
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        assert job.wait(STALL + 8 * GRACE) == 1, log.read_text()
    finally:
        job.kill()
        for process in stopped:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
    assert "error: " in log.read_text(), log.read_text()
    assert "Traceback" not in log.read_text()
    assert files.names(Out(out).scores()) == []
    assert files.names(Out(out).work()) != []
