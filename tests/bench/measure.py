"""Rows of the table of results, and the timing of functions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Time:
    """CPU and wall-clock seconds."""

    cpu: float
    wall: float

    def times(self, factor: float) -> Time:
        """Both times multiplied by a factor."""
        return Time(self.cpu * factor, self.wall * factor)


@dataclass(frozen=True)
class Row:
    """A row of the table: what was measured, the result with its unit, and the target."""

    what: str
    figure: str
    seconds: Time | None = None
    target: str = ""
    note: str = ""


def timed(work: Callable[[], object], repeats: int = 1) -> Time:
    """Medians over `repeats` calls."""
    cpus, walls = [], []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    return Time(statistics.median(cpus), statistics.median(walls))


def ratio(slow: Time, fast: Time) -> str:
    """How many times faster, by CPU seconds."""
    return f"{slow.cpu / fast.cpu:.1f} x"
