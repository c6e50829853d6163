"""A lock on a folder, so that one job at a time writes there. It does not outlive its process.

On a local disk it is a kernel lock (flock), which the kernel releases when the process ends. On S3,
and on file systems without such locks, it is a sequence of numbered objects, each of which only one
process can create. The creator of the newest object holds the lock and rewrites the object every
few seconds. If the object stays unchanged for a whole lease, its holder is considered dead and
another process may create the next number. Clocks of different machines are never compared. A
holder that was stopped, or whose machine slept, for longer than a lease has lost the lock, and
`check` says so.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any

from ops.errors import RunError
from ops.storage import files, s3
from ops.storage.paths import Out
from ops.storage.storage_errors import storage_errors

#: How often a holder renews its object within a lease. Others look at it twice as often.
_RENEWALS = 6
#: What a file system says that has no file locks, such as NFS without a lock service.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
log = logging.getLogger(__name__)
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

    `lease`, in seconds, is used where there are no kernel locks: a holder that does not renew the
    lock for so long is considered dead. Raises Locked if another process holds the lock.
    """
    file = None if s3.is_s3(out.root) else _flocked(out)
    if file is None:
        lock = _Lease(out, lease)
        with lock.held():
            yield lock.check
        return
    with file:
        file.truncate(0)
        file.write(json.dumps(_holder()))
        file.flush()
        yield lambda: None
        # The file is not removed: two processes could then lock two files of the same name.
        file.truncate(0)


def _holder() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now}


def _flocked(out: Out) -> IO[str] | None:
    """The open lock file, which is locked; None if the file system has no locks. Raises Locked."""
    with storage_errors(out.root):
        os.makedirs(out.root, exist_ok=True)
        file = open(out.lock(), "a+", encoding="utf-8")  # noqa: SIM115 - the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            text = file.read()  # empty if the holder has not written yet
        raise Locked(out.root, json.loads(text) if text else {}) from None
    except OSError as error:
        file.close()
        if error.errno in _NO_LOCKS:
            log.warning("%s has no file locks (%s); a lease is used", out.root, error.strerror)
            return None
        with storage_errors(out.root):
            raise
    return file


def _now() -> float:
    """Seconds that pass also while the machine sleeps, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _Lease:
    """The lock on S3, or in a folder."""

    def __init__(self, out: Out, lease: float) -> None:
        self._out, self._lease = out, lease
        self._place = out.lock() if s3.is_s3(out.root) else out.leases()
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
        age = _now() - self._last_renewal
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
        before = _now()  # others count from when they see the object, at the earliest from here
        created = files.create(self._key(self._number), json.dumps(self._holder).encode())
        holder = self._holder if created else self._read(self._number)
        # If the answer was lost and the request was repeated, the object exists but is ours.
        if holder is None or holder["token"] != self._holder["token"]:
            return False
        self._last_renewal = before
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
                before = _now()
                self._write(self._holder)
                self._last_renewal = before

    def _key(self, number: int) -> str:
        return files.join(self._place, f"{number:09d}.json")

    def _numbers(self) -> list[int]:
        names = files.names(self._place)
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
