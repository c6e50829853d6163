"""Calls to Ray that end: a cluster whose processes hang does not answer, and Ray waits for ever.

Such a call runs in a thread of its own, so the caller goes on when the limit has passed. After the
first call without an answer no further one is tried.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipelines.cluster.timeouts import Stalled

T = TypeVar("T")
#: Seconds in which any cluster that works answers a question about its state.
STATE = 60.0
#: Seconds that a command takes at most to leave a cluster that does not answer.
GRACE = 10.0
_EXTENSIONS = 3
_TICK = 0.5
_silent = threading.Event()


def is_silent() -> bool:
    """Whether a call was not answered."""
    return _silent.is_set()


def answered(
    call: Callable[[], T],
    seconds: float,
    what: str,
    lives: Callable[[], bool] = lambda: False,
) -> T:
    """What a call returns or raises. Raises Stalled after so many seconds; 0 sets no limit.

    Seconds during which this process was stopped do not count. As long as `lives` says that the
    cluster answers other questions, the call has the same time again, a few times.
    """
    if is_silent():
        raise Stalled(f"the Ray cluster does not answer any more ({what})")
    if not seconds:
        return call()
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((True, call()))
        except BaseException as error:
            answers.put((False, error))

    threading.Thread(target=run, name=f"ray: {what}", daemon=True).start()
    good, value = _get(answers, seconds, what, lives)
    if good:
        answer: T = value
        return answer
    raise value


def _get(
    answers: queue.SimpleQueue[tuple[bool, Any]],
    seconds: float,
    what: str,
    lives: Callable[[], bool],
) -> tuple[bool, Any]:
    waited, looked, extensions = 0.0, time.monotonic(), _EXTENSIONS
    while True:
        try:
            return answers.get(timeout=min(_TICK, seconds))
        except queue.Empty:
            now = time.monotonic()
            waited += min(now - looked, 2 * _TICK)
            looked = now
        if waited >= seconds:
            if extensions and lives():
                waited, looked, extensions = 0.0, time.monotonic(), extensions - 1
                continue
            _silent.set()
            raise Stalled(f"the Ray cluster did not answer for {seconds:g} seconds ({what})")


def try_for(call: Callable[[], object], seconds: float, what: str) -> bool:
    """Clean something up; whether that ended in time. Never raises Stalled."""
    try:
        answered(call, seconds, what)
    except Stalled:
        return False
    return True


class AwakeClock:
    """Counts the seconds during which this process ran: it may be stopped, or its machine sleep."""

    def __init__(self) -> None:
        self._seconds, self._ended = 0.0, threading.Event()
        self._began = time.monotonic()
        threading.Thread(target=self._tick, name="awake", daemon=True).start()

    def _tick(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(_TICK):
            now = time.monotonic()
            self._seconds += min(now - last, 2 * _TICK)
            last = now

    def asleep(self) -> float:
        """Seconds during which this process was stopped."""
        return max(0.0, time.monotonic() - self._began - self._seconds - 2 * _TICK)

    def end(self) -> None:
        """Count no longer."""
        self._ended.set()
