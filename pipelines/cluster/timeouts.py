"""What hangs is ended: a step that takes too long over its images, a run in which none arrives."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from ops.errors import RunError

#: A step is tried three times before its images are left out, each time in a process that has to
#: start; all that must not look like a stall.
_STEPS = 6


class Stalled(RunError):
    """Nothing was finished for a long time."""


def step_limit(stall: float) -> float:
    """Seconds that one step may take over some images, if a run may stall for `stall` of them."""
    return stall / _STEPS


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End this process unless the block ends in time; its log then has a trace of its threads.

    0 sets no limit. What hangs may hold the interpreter, so the clock runs outside of it.
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
class Limited:
    """A step over some rows that must not take longer than `seconds`."""

    step: Callable[[pa.Table], pa.Table]
    seconds: float

    def __call__(self, rows: pa.Table) -> pa.Table:
        """What the step makes of them."""
        with limited(self.seconds):
            return self.step(rows)
