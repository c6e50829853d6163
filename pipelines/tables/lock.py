"""A lock on a folder, so that one job at a time writes there. It does not outlive its process.

On a local disk it is a kernel lock (flock), which the kernel releases when the process ends. On S3
it is a sequence of numbered objects, each of which only one process can create. The creator of the
newest object holds the lock and rewrites the object every few seconds. If the object stays
unchanged for a whole lease, its holder is considered dead and another process may create the next
number. Clocks of different machines are never compared.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from ops.errors import RunError
from ops.storage import files, s3
from ops.storage.paths import Out
from ops.storage.storage_errors import storage_errors

#: How often a holder renews its object within a lease. Others look at it twice as often.
_RENEWALS = 6
_KEY = re.compile(r"(\d+)\.json")


class Locked(RunError):
    """Another process holds the lock of the output folder."""

    def __init__(self, root: str, holder: dict[str, Any]) -> None:
        since, host, pid = (holder.get(name, "?") for name in ("since", "host", "pid"))
        super().__init__(f"process {pid} on {host} has been working on {root} since {since}")


class LostLock(RunError):
    """The lock was lost during the work. Another process may hold it now."""


@contextlib.contextmanager
def locked(out: Out, lease: float = 120.0) -> Iterator[Callable[[], None]]:
    """Hold the lock of an output folder; yields a check that raises LostLock if the lock is lost.

    `lease`, in seconds, is used on S3 only: a holder that does not renew the lock for so long is
    considered dead. Raises Locked if another process holds the lock.
    """
    if s3.is_s3(out.root):
        lock = _Lease(out, lease)
        with lock.held():
            yield lock.check
    else:
        with _flock(out):
            yield lambda: None


def _holder() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now}


@contextlib.contextmanager
def _flock(out: Out) -> Iterator[None]:
    with storage_errors(out.root):
        os.makedirs(out.root, exist_ok=True)
        lock_file = open(out.lock(), "a+", encoding="utf-8")  # noqa: SIM115 - closed below
    with lock_file as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            text = file.read()  # empty if the holder has not written yet
            raise Locked(out.root, json.loads(text) if text else {}) from None
        file.truncate(0)
        file.write(json.dumps(_holder()))
        file.flush()
        yield
        # The file is not removed: two processes could then lock two files of the same name.
        file.truncate(0)


class _Lease:
    """The lock on S3."""

    def __init__(self, out: Out, lease: float) -> None:
        self._out, self._lease = out, lease
        self._holder: dict[str, Any] = _holder() | {
            "token": uuid.uuid4().hex,
            "renewals": 0,
            "lease": lease,
        }
        self._number = 0
        self._last_renewal = 0.0
        self._taken_over = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        while not self._take():
            pass
        released = threading.Event()
        thread = threading.Thread(target=self._renew, args=(released,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            released.set()
            thread.join(self._lease)
            if not self._taken_over:
                self._write(self._holder | {"ended": True})

    def check(self) -> None:
        age = time.monotonic() - self._last_renewal
        if self._taken_over or age > self._lease:
            raise LostLock(
                f"the lock on {self._out.root} was lost: it could not be renewed for {age:.0f} s. "
                "Finished work is kept; start the same command again"
            )

    def _take(self) -> bool:
        """Try to take the lock; False if another process was faster. Raises Locked."""
        newest = self._newest()
        if newest and self._is_alive(newest):
            raise Locked(self._out.root, self._read(newest) or {})
        self._number = newest + 1
        created = files.create(self._key(self._number), json.dumps(self._holder).encode())
        holder = self._holder if created else self._read(self._number)
        # If the answer was lost and the request was repeated, the object exists but is ours.
        if holder is None or holder["token"] != self._holder["token"]:
            return False
        self._last_renewal = time.monotonic()
        if self._newest() != self._number:  # others took newer numbers meanwhile
            files.remove_file(self._key(self._number))
            return False
        for number in self._numbers():
            if number < self._number:
                files.remove_file(self._key(number))
        return True

    def _is_alive(self, number: int) -> bool:
        """Whether a holder renews its object within the longer of both leases."""
        first = self._read(number)
        if first is None or first.get("ended"):
            return False
        lease = max(self._lease, first.get("lease", 0.0))
        for _ in range(2 * _RENEWALS):
            time.sleep(lease / (2 * _RENEWALS))
            now = self._read(number)
            if now != first:
                return now is not None and not now.get("ended")
        return False

    def _renew(self, released: threading.Event) -> None:
        while not released.wait(self._lease / _RENEWALS):
            # Keep trying while the store is down; `check` decides when the lock is lost.
            with contextlib.suppress(Exception):
                if self._newest() != self._number:
                    self._taken_over = True
                    return
                self._holder["renewals"] += 1
                self._write(self._holder)
                self._last_renewal = time.monotonic()

    def _key(self, number: int) -> str:
        return files.join(self._out.lock(), f"{number:09d}.json")

    def _numbers(self) -> list[int]:
        names = files.names(self._out.lock())
        return [int(match[1]) for name in names if (match := _KEY.fullmatch(name))]

    def _newest(self) -> int:
        return max(self._numbers(), default=0)

    def _read(self, number: int) -> dict[str, Any] | None:
        try:
            holder: dict[str, Any] = files.read_json(self._key(number))
        except FileNotFoundError:
            return None
        return holder

    def _write(self, content: dict[str, Any]) -> None:
        files.write_bytes(self._key(self._number), json.dumps(content).encode())
