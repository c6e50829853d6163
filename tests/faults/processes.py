"""What a job and all processes that it started hold of memory, second by second."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conftest import LOOPBACK_ONLY, ROOT

_KINDS = (
    (re.compile(r"^ray::.*ScoreImages"), "detectors"),
    (re.compile(r"^ray::.*ReadStage"), "readers"),
    (re.compile(r"^ray::"), "other workers"),
    (re.compile(r"/raylet "), "raylet, object store"),
    (re.compile(r"gcs_server"), "gcs"),
    (re.compile(r" jobs\."), "driver"),
    (re.compile(r""), "agents"),
)


class Sample(NamedTuple):
    """Proportional set sizes in bytes by kind of process, at a moment, with so many images done."""

    seconds: float
    done: int
    held: dict[str, int]
    largest: dict[str, int]


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, task.read_text().split())


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for one in found:
        try:
            found += _children(one)
        except OSError:  # gone meanwhile
            continue
    return found


def _held(pid: int) -> tuple[str, int]:
    """Kind and proportional set size: what is shared counts once, in parts."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    size = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return next(kind for pattern, kind in _KINDS if pattern.search(words)), size * 1024


def watched(
    job: str, words: Sequence[str], done: Callable[[], int] = lambda: 0, every: float = 1.0
) -> tuple[str, list[Sample]]:
    """Run a job to its end, on a cluster of its own: what it said, and its memory meanwhile."""
    environment = os.environ | LOOPBACK_ONLY | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", f"jobs.{job}", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    sampler = Sampler(process.pid, done, every)
    sampler.start()
    said = process.communicate()[0]
    samples = sampler.stop()
    assert process.returncode == 0, said
    return said, samples


class Sampler(threading.Thread):
    """Looks at a process and its descendants every so many seconds, until it is stopped."""

    def __init__(self, pid: int, done: Callable[[], int], every: float = 1.0) -> None:
        super().__init__(daemon=True)
        self._pid, self._done, self._every = pid, done, every
        self._over = threading.Event()
        self.samples: list[Sample] = []

    def run(self) -> None:
        """Sample."""
        begun, done = time.monotonic(), 0
        while not self._over.wait(self._every):
            held: dict[str, int] = defaultdict(int)
            largest: dict[str, int] = defaultdict(int)
            for pid in tree(self._pid):
                try:
                    kind, size = _held(pid)
                except (OSError, StopIteration):
                    continue
                held[kind] += size
                largest[kind] = max(largest[kind], size)
            done = max(done, self._done())  # what was counted may be gone at the end
            if held:
                now = Sample(time.monotonic() - begun, done, dict(held), dict(largest))
                self.samples.append(now)

    def stop(self) -> list[Sample]:
        """What was seen."""
        self._over.set()
        self.join()
        return self.samples
