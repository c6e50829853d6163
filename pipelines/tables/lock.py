"""One night at a time: a lock on an output folder that outlives no crash.

Locally it is the kernel's (flock), which lets go when a process dies, however it dies. On S3 it is
a row of numbered keys, each of which only one process can create. Who holds the last of them
rewrites it every few seconds; one that stays as it is for a whole lease belonged to the dead, and
the next number may be taken. No two machines' clocks are ever compared.
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
from ops.storage import files
from ops.storage.paths import Out

#: How often a holder rewrites its key within a lease, and how often others look at it.
_BEATS = 6
_KEY = re.compile(r"(\d+)\.json")


class Locked(RunError):
    """Another process works on the output folder."""

    def __init__(self, place: str, holder: dict[str, Any]) -> None:
        since, host, pid = (holder.get(name, "?") for name in ("since", "host", "pid"))
        super().__init__(f"process {pid} on {host} works on {place} since {since}")


class LostLock(RunError):
    """The lock was lost while work went on; what is unfinished is left to its new holder."""


@contextlib.contextmanager
def locked(out: Out, lease: float = 120.0) -> Iterator[Callable[[], None]]:
    """Hold the lock of an output folder; what is yielded raises LostLock once it is lost.

    `lease`, in seconds, matters on S3 alone: how long a holder may be silent, and so how long the
    successor of a dead one waits. Raises Locked if another process holds it.
    """
    if files.is_s3(out.root):
        holding = _Lease(out, lease)
        with holding.held():
            yield holding.check
    else:
        with _flock(out):
            yield lambda: None


def _holder() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now}


@contextlib.contextmanager
def _flock(out: Out) -> Iterator[None]:
    os.makedirs(out.root, exist_ok=True)
    with open(out.lock(), "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            text = file.read()  # empty while the holder has not written yet
            raise Locked(out.root, json.loads(text) if text else {}) from None
        file.truncate(0)
        file.write(json.dumps(_holder()))
        file.flush()
        yield
        # The file stays: were it removed, two processes could lock two files of one name.
        file.truncate(0)


class _Lease:
    def __init__(self, out: Out, lease: float) -> None:
        self._out, self._lease = out, lease
        self._mine: dict[str, Any] = _holder() | {
            "token": uuid.uuid4().hex,
            "beat": 0,
            "lease": lease,
        }
        self._number = 0
        self._last_beat = 0.0
        self._stolen = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        while not self._take():
            pass
        over = threading.Event()
        heart = threading.Thread(target=self._beating, args=(over,), daemon=True)
        heart.start()
        try:
            yield
        finally:
            over.set()
            heart.join(self._lease)
            if not self._stolen:
                self._write(self._mine | {"ended": True})

    def check(self) -> None:
        silent = time.monotonic() - self._last_beat
        if self._stolen or silent > self._lease:
            raise LostLock(
                f"the lock on {self._out.root} was lost: for {silent:.0f} s it could not be "
                "renewed. What was finished is kept; start the same command again"
            )

    def _take(self) -> bool:
        """Try to become the holder; False if things changed meanwhile. Raises Locked."""
        newest = self._newest()
        if newest and self._is_alive(newest):
            raise Locked(self._out.root, self._read(newest) or {})
        self._number = newest + 1
        created = files.create(self._key(self._number), json.dumps(self._mine).encode())
        holder = self._mine if created else self._read(self._number)
        # A request that was repeated after its answer was lost finds its own key.
        if holder is None or holder["token"] != self._mine["token"]:
            return False
        self._last_beat = time.monotonic()
        if self._newest() != self._number:  # others went on while this process slept
            files.remove_file(self._key(self._number))
            return False
        for number in self._numbers():
            if number < self._number:
                files.remove_file(self._key(number))
        return True

    def _is_alive(self, number: int) -> bool:
        """Watch a key for a lease, its own or the holder's, or until it is renewed."""
        first = self._read(number)
        if first is None or first.get("ended"):
            return False
        lease = max(self._lease, first.get("lease", 0.0))
        for _ in range(2 * _BEATS):
            time.sleep(lease / (2 * _BEATS))
            now = self._read(number)
            if now != first:
                return now is not None and not now.get("ended")
        return False

    def _beating(self, over: threading.Event) -> None:
        while not over.wait(self._lease / _BEATS):
            # A store that is down for a while is no reason to stop; `check` knows when it is.
            with contextlib.suppress(Exception):
                if self._newest() != self._number:
                    self._stolen = True
                    return
                self._mine["beat"] += 1
                self._write(self._mine)
                self._last_beat = time.monotonic()

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
