"""Nights on a shared cluster, each with a fault of the world around it, drawn under a seed.

A night must end within its limit, with the promised table or with a sentence and a code that is not
zero; and the next night, which nothing disturbs, must end whole.

python -m tests.faults world --runs 20 --images 60 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ops.detectors.model_folder import read_card
from ops.storage import files
from ops.storage.paths import Out
from pipelines.tables import current_scores
from tests.cluster import Cluster
from tests.faults.warehouse import build, start

STALL, ROOM = 60, 400  # seconds: --resources.stall_timeout and --resources.wait_for_room
#: Seconds for a night: it waits for room, stalls, leaves the cluster; and a busy machine is slow.
LIMIT = 900
HOSTILE = (
    "new\nline.bmp",
    "'; DROP TABLE scores; --.bmp",
    "<img src=x onerror=alert(1)>.bmp",
    "\u202egnp.bmp",
    "%2e%2e%2f.bmp",
    "{name}.bmp",
    "-rf *.bmp",
    "\x1b[31mred.bmp",
    "a" * 240 + ".bmp",
    "# ? &.bmp",
)


@dataclass(frozen=True)
class Case:
    """A kind of fault, one of its variants, and when it happens: a share of a night."""

    kind: str
    variant: int
    when: float


def cases(runs: int, seed: int) -> list[Case]:
    """As many of each kind as possible, in a random order."""
    rng = random.Random(seed)
    kinds = [list(FAULTS)[n % len(FAULTS)] for n in range(runs)]
    rng.shuffle(kinds)
    return [Case(kind, rng.randrange(1000), rng.uniform(0.2, 0.9)) for kind in kinds]


@dataclass
class Ending:
    """What came of a case."""

    case: Case
    did: str = ""
    seconds: float = 0.0
    fault: str = ""
    wrong: list[str] = field(default_factory=list)

    def line(self, number: int) -> str:
        """A row as Markdown."""
        wrong = "; ".join(self.wrong) or "yes"
        return (
            f"| {number} | {self.case.kind}: {self.fault} | {self.did} | {self.seconds:.0f} | "
            f"{wrong} |"
        )


HEAD = "| | fault | the night | seconds | as promised |\n|---|---|---|---|---|"


class World:
    """A cluster of six CPUs, and archives of small images."""

    def __init__(self, folder: Path, images: int, stack: contextlib.ExitStack) -> None:
        self.folder, self.images = folder, images
        self.warehouse = build(f"{folder}/warehouse", images)
        self.cluster = Cluster(os.environ | {"OMP_NUM_THREADS": "1"}, 6)
        stack.callback(self.cluster.end)
        self.usual = 60.0

    def archive(self, name: str) -> Path:
        """A copy of the images of its own."""
        place = self.folder / f"parts-{name}"
        shutil.copytree(f"{self.warehouse.root}/parts", place)
        return place

    def begin(self, archive: Path, out: Path, workers: int = 2) -> subprocess.Popen:
        """Start a night of so many workers; with 0 it takes the whole cluster."""
        words = ["--archive", str(archive), "--pattern", "{product}/{name}", "--out", str(out)]
        words += ["--model", self.warehouse.model, "--maps", "all", "--chunk-rows", "20"]
        words += ["--resources.batch", "10", "--resources.stall_timeout", str(STALL)]
        words += ["--resources.wait_for_room", str(ROOM), "--report", "false"]
        words += ["--resources.workers", str(workers)]
        return start("nightly", words, f"{out}.log", {"RAY_ADDRESS": self.cluster.address})


@dataclass
class Night:
    """A night that a fault disturbs."""

    world: World
    case: Case
    archive: Path
    out: Path
    ended: threading.Event = field(default_factory=threading.Event)
    undo: list[Callable[[], object]] = field(default_factory=list)
    """What ends the fault."""
    neighbour: subprocess.Popen | None = None

    @property
    def parts(self) -> Path:
        """The folder of the images."""
        return self.archive / "washer"

    def moment(self) -> bool:
        """Wait for the moment of the fault; False if the night has ended."""
        return not self.ended.wait(self.case.when * self.world.usual)


def _space(night: Night) -> str:
    place = night.out / ("maps", "_work", "scores", "drift")[night.case.variant % 4]
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        night.undo.append(lambda: subprocess.run(["umount", "-l", place], check=True))
        return f"4 kB for {place.name}"
    place.rmdir()
    place.write_text("in the way")
    night.undo.append(place.unlink)
    return f"no folder {place.name}"


def _clock(night: Night) -> str:
    years = (-30, 20, 60)[night.case.variant % 3]
    then = time.time() + years * 365 * 86400
    for file in night.parts.iterdir():
        os.utime(file, (then, then))
    return f"files of {years:+} years"


def _names(night: Night) -> str:
    one = night.parts / "00000.bmp"
    for name in HOSTILE:
        shutil.copy(one, night.parts / name)
    return f"{len(HOSTILE)} hostile names"


def _growing(night: Night) -> str:
    def grow() -> None:
        while not night.ended.wait(0.05):
            with (night.parts / "00001.bmp").open("ab") as file:
                file.write(b"more")

    thread = threading.Thread(target=grow, daemon=True)
    thread.start()
    night.undo.append(thread.join)
    return "a file grows"


def _stopped(night: Night) -> str:
    for_ever = night.case.variant % 2 == 0

    def stop() -> None:
        if not night.moment():
            return
        workers = [pid for pid, name in night.world.cluster.workers() if "MapWorker" in name]
        for pid in workers[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                night.undo.append(functools.partial(_go_on, pid))
                if not for_ever:
                    night.ended.wait(10)
                    _go_on(pid)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    night.undo.append(thread.join)
    return f"a worker is stopped{'' if for_ever else ' for 10 s'}"


def _go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _neighbour(night: Night) -> str:
    night.neighbour = night.world.begin(night.archive, Path(f"{night.out}-neighbour"), 0)
    return "another night on the cluster"


FAULTS: dict[str, Callable[[Night], str]] = {
    "space": _space,
    "clock": _clock,
    "names": _names,
    "growing": _growing,
    "stopped": _stopped,
    "neighbour": _neighbour,
}


def attempt(world: World, case: Case, name: str) -> Ending:
    """A night with a fault, then one without."""
    night = Night(world, case, world.archive(name), world.folder / f"out-{name}")
    ending = Ending(case)
    began = time.monotonic()
    try:
        ending.fault = FAULTS[case.kind](night)
        job = world.begin(night.archive, night.out, 0 if night.neighbour else 2)
        ending.did = _end(job, night.out, ending, "the night")
        ending.seconds = time.monotonic() - began
        if night.neighbour:
            _end(night.neighbour, Path(f"{night.out}-neighbour"), ending, "the neighbour")
    finally:
        night.ended.set()
        while night.undo:
            night.undo.pop()()
    began = time.monotonic()
    again = world.begin(night.archive, night.out)
    if _end(again, night.out, ending, "the next night") != "finished":
        ending.wrong.append("the next night did not finish")
    else:
        world.usual = time.monotonic() - began if ending.did != "finished" else world.usual
        _judge_view(world, night, ending)
    return ending


def _end(job: subprocess.Popen, out: Path, ending: Ending, which: str) -> str:
    """Wait for a job; how it ended, for people."""
    try:
        code = job.wait(LIMIT)
    except subprocess.TimeoutExpired:
        job.kill()
        job.wait()
        ending.wrong.append(f"{which} had no end after {LIMIT} s")
        return "hung"
    said = Path(f"{out}.log").read_text().strip().splitlines()
    if any(line.startswith("Traceback") for line in said):
        ending.wrong.append(f"{which} showed a traceback")
    if code == 0:
        return "finished"
    sentences = [line for line in said if line.startswith("error: ")]
    if not sentences:
        ending.wrong.append(f"{which} ended with {code} and no sentence")
    return f"exit {code} ({sentences[-1][7:200] if sentences else 'silent'})"


def _judge_view(world: World, night: Night, ending: Ending) -> None:
    """The current view must have each image once, and a score for all but the broken one."""
    model_id = read_card(world.warehouse.model).model_id
    view = current_scores.current(Out(str(night.out)), model_id)
    uris = view["uri"].to_pylist()
    there = len(list(night.parts.iterdir()))
    if not len(set(uris)) == len(uris) == there:
        ending.wrong.append(f"{len(uris)} rows for {there} images")
    if night.case.kind != "growing" and view["score"].null_count != 1:
        ending.wrong.append(f"{view['score'].null_count} images without a score")
    if left := files.names(Out(str(night.out)).work()):
        ending.wrong.append(f"left over: {left[:3]}")


@contextlib.contextmanager
def world_of(images: int) -> Iterator[World]:
    """Everything that a campaign needs; it ends with the context."""
    folder = Path(tempfile.mkdtemp(prefix="nightloupe-world-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, True)
        yield World(folder, images, stack)


def main(argv: list[str]) -> int:
    """Print the table; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults world")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="one kind of fault")
    parser.add_argument("--first", type=int, default=1, help="number of the case to begin with")
    settings = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster ends, too
    draw = [c for c in cases(settings.runs, settings.seed) if settings.only in ("", c.kind)]
    draw = list(enumerate(draw, start=1))[settings.first - 1 :]
    wrong = 0
    with world_of(settings.images) as world:
        print(HEAD, flush=True)
        for number, case in draw:
            ending = attempt(world, case, str(number))
            print(ending.line(number), flush=True)
            wrong += bool(ending.wrong)
    print(f"{len(draw)} runs, {wrong} of them wrong")
    return int(wrong > 0)
