"""What every part of the check works with: device, bundle, sizes, time, and figures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tests.bench.gpu.bundle import Bundle


@dataclass(frozen=True)
class Figure:
    """One line of the result: what was measured, its value and unit; `right` if it was a check."""

    what: str
    value: float | None = None
    unit: str = ""
    note: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Check:
    """The surroundings of a part."""

    bundle: Bundle
    device: str
    deadline: float
    """When the part must have ended, by `time.monotonic`."""

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU; else all sizes are small, to try the check itself."""
        return self.device.startswith("cuda")

    def size(self, gpu: Any, cpu: Any) -> Any:
        """A size of the work, by device."""
        return gpu if self.cuda else cpu

    def left(self, needed: float) -> bool:
        """Whether the part has `needed` seconds left."""
        return time.monotonic() + needed < self.deadline

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def once(self, work: Callable[[], object]) -> float:
        """Wall-clock seconds of one call, the device's work included."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def seconds(self, work: Callable[[], object], repeats: int = 5, warm: int = 2) -> float:
        """The median of `repeats` calls after `warm` ones."""
        for _ in range(warm if self.cuda else 1):
            work()
        return statistics.median(self.once(work) for _ in range(repeats if self.cuda else 1))


#: A part yields figures as it finds them, so that those of a part that is ended are kept.
Part = Callable[[Check], Iterator[Figure]]
