"""Time limits: for one step over some images, and for a run in which no image is finished."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from ops.errors import RunError

#: A step is tried three times before its images are left out, each time in a process that must
#: start first. All of that must take less time than a run may stall.
_STEPS_PER_STALL = 6


class Stalled(RunError):
    """No image was finished for longer than --resources.stall_timeout."""


def step_timeout(stall_timeout: float) -> float:
    """Seconds that one step over some images may take; 0 if there is no limit."""
    return stall_timeout / _STEPS_PER_STALL


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Kill this process if the block takes longer; 0 sets no limit.

    The stacks of its threads are written to its stderr before. The timer runs outside of the
    interpreter, because code that hangs may hold the interpreter's lock.
    """
    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@dataclass(frozen=True)
class TimedStep:
    """A step over some rows, under a time limit of `seconds`."""

    step: Callable[[pa.Table], pa.Table]
    seconds: float

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Apply the step to the rows."""
        with time_limit(self.seconds):
            return self.step(rows)
