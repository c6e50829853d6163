"""Of many that want the lock one gets it; the dead let go of it, the living do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ops.storage import files
from ops.storage.paths import Out
from pipelines.tables import lock
from tests.conftest import ROOT

LEASE = 0.6
HOLD = """
import sys, time
from ops.storage.paths import Out
from pipelines.tables import lock
with lock.locked(Out(sys.argv[1]), float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(100)
"""


def holder(root, lease=LEASE):
    """A process that holds the lock."""
    words = [sys.executable, "-c", HOLD, root, str(lease)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_the_second_process_is_told_who_works_and_since_when_and_a_killed_one_lets_go(tmp_path):
    out = Out(str(tmp_path))
    process = holder(out.root)
    try:
        with pytest.raises(
            lock.Locked, match=rf"^process {process.pid} on \S+ works on .* since 2"
        ):
            lock.locked(out).__enter__()
    finally:
        kill(process)
    with lock.locked(out) as check:
        check()
    with lock.locked(out):
        pass


def lease(out):
    return lock._Lease(out, LEASE)


@pytest.fixture
def out(tmp_path):
    return Out(str(tmp_path / "out"))


def test_a_lease_is_handed_on_at_once_when_it_was_ended(out):
    begun = time.monotonic()
    for _ in range(3):
        with lease(out).held():
            pass
    assert time.monotonic() - begun < LEASE
    assert len(list(files.listing(out.lock()))) == 1  # older numbers are cleared away


def test_a_living_holder_is_left_alone_and_keeps_its_lease(out):
    first = lease(out)
    with first.held():
        for _ in range(2):
            with pytest.raises(lock.Locked, match="works on"), lease(out).held():
                pass
        first.check()


def silent(out, monkeypatch):
    """A holder that never renews its lease, as if it had died."""
    with monkeypatch.context() as patch:
        patch.setattr(lock._Lease, "_beating", lambda self, over: None)
        dead = lease(out)
        dead.context = dead.held()  # which would end, were it forgotten
        dead.context.__enter__()
    return dead


def test_a_silent_holder_is_taken_for_dead_after_a_lease_and_learns_of_it(out, monkeypatch):
    dead = silent(out, monkeypatch)
    begun = time.monotonic()
    with lease(out).held():
        assert time.monotonic() - begun >= LEASE
        with pytest.raises(lock.LostLock, match="start the same command again"):
            dead.check()
        dead._beating(threading.Event())
        assert dead._stolen
        with pytest.raises(lock.Locked), lease(out).held():
            pass  # what the dead does no longer matters


def test_of_many_that_wait_for_a_dead_holder_one_gets_its_lock(out, monkeypatch):
    dead = silent(out, monkeypatch)
    over, got, left = threading.Event(), [], []

    def wait():
        try:
            with lease(out).held():
                got.append(1)
                over.wait(20)
        except lock.Locked:
            left.append(1)

    threads = [threading.Thread(target=wait) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(got) + len(left) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    over.set()
    for thread in threads:
        thread.join(20)
    assert (len(got), len(left)) == (1, 5)
    with pytest.raises(lock.LostLock):
        dead.check()


@pytest.mark.slow
def test_on_s3_a_killed_holder_loses_its_lock_after_a_lease(s3):
    process = holder(f"{s3}/out", 3.0)
    try:
        with pytest.raises(lock.Locked, match=f"process {process.pid} on"):
            lock.locked(Out(f"{s3}/out"), 3.0).__enter__()
    finally:
        kill(process)
    with lock.locked(Out(f"{s3}/out"), 3.0) as check:
        check()


def test_what_is_there_is_not_created_again(tmp_path):
    place = str(tmp_path / "new" / "a")
    assert files.create(place, b"1")
    assert not files.create(place, b"2")
    assert files.read_bytes(place) == b"1"
    assert [item.name for item in files.listing(str(tmp_path))] == ["new/a"]
