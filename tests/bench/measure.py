"""Rows of the table of figures, and how they are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Time:
    """Seconds of processor and of clock."""

    cpu: float
    wall: float

    def times(self, factor: float) -> Time:
        """As if it had been done so many times."""
        return Time(self.cpu * factor, self.wall * factor)


@dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, in which unit, and against what target."""

    what: str
    figure: str
    seconds: Time | None = None
    target: str = ""
    note: str = ""


def timed(work: Callable[[], object], repeats: int = 1) -> Time:
    """Medians of processor and clock seconds."""
    cpus, walls = [], []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    return Time(statistics.median(cpus), statistics.median(walls))


def ratio(slow: Time, fast: Time) -> str:
    """How many times faster, by processor seconds."""
    return f"{slow.cpu / fast.cpu:.1f} x"
