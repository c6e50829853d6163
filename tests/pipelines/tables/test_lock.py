"""One process gets the lock; a killed one loses it, a living one keeps it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ops.storage import files
from ops.storage.paths import Out
from ops.storage.storage_errors import StorageError
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


def test_the_second_process_learns_the_holder_and_a_killed_holder_loses_the_lock(tmp_path):
    out = Out(str(tmp_path))
    process = holder(out.root)
    try:
        with pytest.raises(
            lock.Locked, match=rf"^process {process.pid} on \S+ has been working on .* since 2"
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


def test_a_released_lease_can_be_taken_at_once(out):
    begun = time.monotonic()
    for _ in range(3):
        with lease(out).held():
            pass
    assert time.monotonic() - begun < LEASE
    assert len(list(files.listing(out.leases()))) == 1  # older numbers are cleared away


def test_a_living_holder_keeps_its_lease(out):
    first = lease(out)
    with first.held():
        for _ in range(2):
            with pytest.raises(lock.Locked, match="has been working on"), lease(out).held():
                pass
        first.check()


def silent(out, monkeypatch):
    """A holder that never renews its lease, as if it had died."""
    with monkeypatch.context() as patch:
        patch.setattr(lock._Lease, "_renew", lambda self, released: None)
        dead = lease(out)
        dead.context = dead.held()  # would end if it were garbage-collected
        dead.context.__enter__()
    return dead


def test_a_holder_that_stops_renewing_loses_the_lock_after_a_lease(out, monkeypatch):
    dead = silent(out, monkeypatch)
    begun = time.monotonic()
    with lease(out).held():
        assert time.monotonic() - begun >= LEASE
        with pytest.raises(lock.LostLock, match="start the same command again"):
            dead.check()
        dead._renew(threading.Event())
        assert dead._taken_over
        with pytest.raises(lock.Locked), lease(out).held():
            pass  # what the dead holder does no longer matters


def test_one_of_many_waiting_processes_gets_the_lock_of_a_dead_holder(out, monkeypatch):
    dead = silent(out, monkeypatch)
    over, holders, refused = threading.Event(), [], []

    def wait():
        try:
            with lease(out).held():
                holders.append(1)
                over.wait(20)
        except lock.Locked:
            refused.append(1)

    threads = [threading.Thread(target=wait) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(holders) + len(refused) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    over.set()
    for thread in threads:
        thread.join(20)
    assert (len(holders), len(refused)) == (1, 5)
    with pytest.raises(lock.LostLock):
        dead.check()


WORK = """
import sys, time
from ops.storage.paths import Out
from pipelines.tables import lock
held = lock._Lease(Out(sys.argv[1]), float(sys.argv[2]))
with held.held():
    print("held", flush=True)
    while True:
        held.check()
        with open(sys.argv[1] + "/written", "a") as file:
            file.write("x")
        time.sleep(0.02)
"""


def test_a_holder_that_was_stopped_for_longer_than_its_lease_writes_no_more(out):
    words = [sys.executable, "-c", WORK, out.root, str(LEASE)]
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGSTOP)
    with lease(out).held():
        written = os.path.getsize(f"{out.root}/written")
        os.kill(process.pid, signal.SIGCONT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "LostLock: the lock on" in told
    # It may have been stopped between its check and its write.
    assert os.path.getsize(f"{out.root}/written") - written <= 1


def test_time_in_which_the_machine_slept_counts(out, monkeypatch):
    held = lease(out)
    now = lock._now
    with held.held():
        held.check()
        with monkeypatch.context() as patch:
            patch.setattr(lock, "_now", lambda: now() + 2 * LEASE)
            with pytest.raises(lock.LostLock, match="start the same command again"):
                held.check()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_file_locks_a_lease_is_used(out, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    with lock.locked(out, LEASE) as check:
        check()
        with pytest.raises(lock.Locked, match=f"process {os.getpid()} on"):
            lock.locked(out, LEASE).__enter__()
    with lock.locked(out, LEASE):
        pass
    assert sorted(os.listdir(out.root)) == ["_leases", "_lock"]


def test_other_failures_of_locks_are_told(out, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lock.fcntl, "flock", fails)
    with pytest.raises(StorageError, match="Input/output error"):
        lock.locked(out).__enter__()


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


def test_create_does_not_replace_an_existing_file(tmp_path):
    place = str(tmp_path / "new" / "a")
    assert files.create(place, b"1")
    assert not files.create(place, b"2")
    assert files.read_bytes(place) == b"1"
    assert [item.name for item in files.listing(str(tmp_path))] == ["new/a"]
