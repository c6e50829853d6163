"""A SIGKILL at a random moment of each run; whatever dies, the table is that of a quiet night.

python -m tests.faults kills --runs 20 --images 3000 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from jobs import check
from jobs.tracking.tracker import EXPERIMENT, Tracker
from ops.storage import files
from ops.storage.paths import Out
from tests.cluster import Cluster
from tests.conftest import SECRET, forget_s3, new_bucket
from tests.faults.servers import relay_to, s3_server, tracker_in
from tests.faults.warehouse import (
    Warehouse,
    Witness,
    build,
    drawn,
    published,
    regions,
    start,
    tiled_model,
)

#: What the processes that read, detect and draw call themselves.
STAGES = ("ReadStage", "ScoreImages")
REGISTERED = "models:/washer@champion"
ATTEMPTS = 4
AWAY = 3.0  # seconds that a server stays dead


@dataclass(frozen=True)
class Case:
    """What is killed in one run, and when: the share of an undisturbed run's seconds."""

    victim: str
    when: float
    maps: str = "none"

    @property
    def store(self) -> str:
        """Where images, model and outputs lie."""
        return "s3" if self.victim == "s3" else "disk"


def cases(runs: int, seed: int) -> list[Case]:
    """As many of each kind; maps are drawn in every other run."""
    rng = random.Random(seed)
    found = []
    for number in range(runs):
        turn, kind = divmod(number, 4)
        victim = ("worker", "raylet", "driver", ("s3", "tracker")[turn % 2])[kind]
        maps = "all" if victim != "s3" and (turn + kind) % 2 else "none"
        found.append(Case(victim, round(rng.uniform(0.2, 1.0), 3), maps))
    return found


@dataclass
class Ending:
    """What came of a case."""

    case: Case
    killed: str = ""
    share: float = 0.0
    did: list[str] = field(default_factory=list)
    seconds: float = 0.0
    rows: int = 0
    staged: int = 0
    wrong: list[str] = field(default_factory=list)

    def line(self, number: int) -> str:
        """A row as Markdown."""
        equal = "; ".join(self.wrong) or "yes"
        where = "S3" if self.case.store == "s3" else "disk"
        did = ", ".join(self.did)
        return (
            f"| {number} | {self.killed} | {where}, maps {self.case.maps} | {self.share:.0%} | "
            f"{did} | {self.seconds:.0f} | {self.rows} | {equal} |"
        )


HEAD = (
    "| | killed | out | rows done | the job | seconds | rows | equal |\n"
    "|---|---|---|---|---|---|---|---|"
)


class Tables(NamedTuple):
    """What a run publishes."""

    scores: pa.Table
    regions: pa.Table


class World:
    """A cluster, an S3 server behind a relay, a tracker, and a warehouse on disk and on S3."""

    def __init__(self, folder: Path, images: int, stack: contextlib.ExitStack) -> None:
        self.folder, self.images = folder, images
        self.returning: threading.Timer | None = None
        moto, port = s3_server()
        stack.callback(moto.kill)
        self.relay = relay_to(port)
        stack.callback(self.relay.kill)
        self.tracker = tracker_in(folder / "tracker")
        stack.callback(self.tracker.kill)
        # We look past the relay; jobs and their workers do not.
        aws = {**SECRET, "AWS_ENDPOINT_URL": moto.address, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ.update(aws | {"MLFLOW_TRACKING_URI": self.tracker.address})
        forget_s3()
        self.behind = {"AWS_ENDPOINT_URL": self.relay.address}
        self.cluster = Cluster(os.environ | self.behind | {"OMP_NUM_THREADS": "1"}, 2, others=2)
        stack.callback(self.cluster.end)
        self.bucket = new_bucket()
        self.warehouses = {"disk": build(f"{folder}/warehouse", images, tiled=True)}
        self.register()
        self.quiet: dict[tuple[str, str], tuple[Tables, dict[str, str], float]] = {}

    def register(self) -> None:
        """Put the model into the registry."""
        tracker = Tracker(str(self.folder / "registering"))
        with contextlib.redirect_stdout(io.StringIO()), tracker.run("fit", {}) as record:
            assert tracker.register(tiled_model(), "washer", "champion", record)

    def warehouse(self, store: str) -> Warehouse:
        """The one of a store."""
        if store not in self.warehouses:
            self.warehouses[store] = build(f"{self.bucket}/warehouse", self.images, tiled=True)
        return self.warehouses[store]

    def place(self, store: str, name: str) -> str:
        """An output folder."""
        return f"{self.bucket if store == 's3' else self.folder}/out-{name}"

    def begin(self, case: Case, out: str, log: str) -> subprocess.Popen:
        """Start the job of a case."""
        words = self.warehouse(case.store).words(out, "--maps", case.maps)
        if case.victim == "tracker":
            words += ["--model", REGISTERED]
        address = {"RAY_ADDRESS": self.cluster.address}
        return start("score", words, log, self.behind | address)

    def undisturbed(self, case: Case) -> tuple[Tables, dict[str, str], float]:
        """Tables, maps and seconds of a run that nothing happens to."""
        key = (case.store, case.maps)
        if key not in self.quiet:
            out, log = self.place(case.store, f"quiet-{case.maps}"), f"{self.folder}/quiet.log"
            began = time.monotonic()
            job = self.begin(replace(case, victim=case.store), out, log)
            assert job.wait(300) == 0, Path(log).read_text()
            seconds = time.monotonic() - began
            tables = Tables(published(out), regions(out))
            assert len(tables.regions) > self.images / 2
            self.quiet[key] = (tables, drawn(out), seconds)
        return self.quiet[key]


def attempt(world: World, case: Case, name: str, rng: random.Random) -> Ending | None:
    """One run and its kill; None if the run was over before, which says how long one takes now."""
    tables, maps, usual = world.undisturbed(case)
    out, log = world.place(case.store, name), f"{world.folder}/{name}.log"
    ending = Ending(case)
    witness = Witness(out, world.images)
    witness.start()
    began = time.monotonic()
    job = world.begin(case, out, log)
    try:
        if not strike(world, case, job, began + case.when * usual, ending, out, rng):
            world.quiet[case.store, case.maps] = (tables, maps, time.monotonic() - began)
            return None
        for _ in range(ATTEMPTS):
            code = finished(job)
            ending.did.append(told(code, log))
            if code == 0 or code is None:
                break
            job = world.begin(case, out, log)
        ending.seconds = time.monotonic() - began
    finally:
        job.kill()
        job.wait()
        witness.end()
        if world.returning:
            world.returning.join()
        if case.victim == "raylet" and len(world.cluster.others) < 2:
            world.cluster.join()
    judge(world, ending, out, witness, tables, maps)
    return ending


def strike(
    world: World,
    case: Case,
    job: subprocess.Popen,
    moment: float,
    ending: Ending,
    out: str,
    rng: random.Random,
) -> bool:
    """Wait for the moment, and kill; False if the job was over before."""
    while job.poll() is None:
        time.sleep(0.02)
        if time.monotonic() < moment:
            continue
        ending.share = done(world, out)
        if case.victim == "worker":
            at_work = [w for w in world.cluster.workers() if any(s in w[1] for s in STAGES)]
            if not at_work:
                continue
            process, ending.killed = rng.choice(at_work)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
                return True
        elif case.victim == "raylet":
            number = rng.randrange(2)
            ending.killed = f"raylet {number + 2} of 3"
            world.cluster.lose(world.cluster.others[number])
            return True
        elif case.victim == "driver":
            ending.killed = "driver"
            job.send_signal(signal.SIGKILL)
            return True
        else:
            ending.killed = "way to S3" if case.victim == "s3" else "tracker"
            server = world.relay if case.victim == "s3" else world.tracker
            server.kill()
            world.returning = threading.Timer(AWAY, server.start)
            world.returning.start()
            return True
    return False


def done(world: World, out: str) -> float:
    """The share of rows that lie in finished parts, or in the published table."""
    if files.names(Out(out).scores()):
        return 1.0
    parts = [name for name in files.names(Out(out).work()) if "/part-" in name]
    return min(1.0, len(parts) * world.warehouse("disk").chunk_rows / world.images)


def finished(job: subprocess.Popen) -> int | None:
    """Its exit code; None if it hangs."""
    try:
        return job.wait(240)
    except subprocess.TimeoutExpired:
        return None


def told(code: int | None, log: str) -> str:
    """How an attempt ended, for people."""
    if code is None:
        return "hung"
    if code == 0:
        return "finished"
    if code < 0:
        return "killed"
    said = Path(log).read_text().strip().splitlines()
    return f"exit {code} ({said[-1][:90] if said else 'silent'})"


def judge(
    world: World,
    ending: Ending,
    out: str,
    witness: Witness,
    tables: Tables,
    maps: dict[str, str],
) -> None:
    """Write down all that is not as it should be."""
    wrong = ending.wrong
    if ending.did[-1] != "finished":
        wrong.append(f"the job {ending.did[-1]}")
        return
    found = published(out)
    ending.rows = len(found)
    if not found.equals(tables.scores):
        wrong.append("another table")
    if not regions(out).equals(tables.regions):
        wrong.append("other regions")
    if drawn(out) != maps:
        wrong.append("other maps")
    if witness.torn:
        wrong.append(f"torn: {witness.torn[0]}")
    if left := files.names(Out(out).work()):
        wrong.append(f"left over: {left[:3]}")
    if ending.case.store == "disk":
        # Hidden from readers, but nobody removes them.
        ending.staged = len(list(Path(out).rglob(".*.tmp")))
        traces = Path(f"{world.folder}/{Path(out).name.removeprefix('out-')}.log").read_text()
        if "Traceback" in traces:
            wrong.append("a traceback")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        model = world.warehouse(ending.case.store).model
        if check.main(["--out", out, "--model", model]) != 0:
            wrong.append(said.getvalue().strip().replace("\n", " "))
    wrong += untracked(out)


def untracked(out: str) -> list[str]:
    """Whether the tracker, or what waits for it, has exactly one record of the run's end."""
    from mlflow import MlflowClient

    (name,) = files.names(Out(out).runs())
    run_id = files.read_json(files.join(Out(out).runs(), name))["run_id"]
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []
    heard = [r for r in runs if r.data.params.get("out") == out and r.info.status == "FINISHED"]
    spool = Out(out).spool()
    spooled = [files.read_json(files.join(spool, name)) for name in files.names(spool)]
    kept = [r for r in spooled if r["tags"].get("run_id") == run_id and r["status"] == "FINISHED"]
    # What arrived though its answer was lost waits too, and is known by its delivery.
    told = {r["delivery"] for r in kept} | {r.data.tags["delivery"] for r in heard}
    return (
        [] if len(told) == 1 and len(heard) < 2 else [f"tracked {len(heard)} + {len(kept)} times"]
    )


@contextlib.contextmanager
def world_of(images: int) -> Iterator[World]:
    """Everything that a campaign needs; it ends with the context."""
    folder = Path(tempfile.mkdtemp(prefix="nightloupe-kills-"))
    before = dict(os.environ)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, True)
        stack.callback(forget_s3)
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        yield World(folder, images, stack)


def campaign(world: World, draw: list[Case], seed: int) -> Iterator[Ending]:
    """All cases, one after the other."""
    for number, case in enumerate(draw, start=1):
        rng = random.Random(f"{seed}-{number}")
        for again in range(ATTEMPTS):
            sooner = replace(case, when=case.when * 0.8**again)
            if tried := attempt(world, sooner, f"{number}-{again}", rng):
                yield tried
                break


def main(argv: list[str]) -> int:
    """Print the table; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults kills")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="one kind of victim")
    settings = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all servers end, too
    draw = cases(settings.runs, settings.seed)
    draw = [case for case in draw if settings.only in ("", case.victim)]
    wrong = staged = 0
    with world_of(settings.images) as world:
        print(HEAD, flush=True)
        for number, ending in enumerate(campaign(world, draw, settings.seed), start=1):
            print(ending.line(number), flush=True)
            wrong += bool(ending.wrong)
            staged += ending.staged
        for (store, maps), (tables, _, seconds) in world.quiet.items():
            print(
                f"undisturbed on {store}, maps {maps}: {len(tables.scores)} rows, {seconds:.0f} s"
            )
    print(f"{len(draw)} runs, {wrong} of them wrong; {staged} files that a death left half-written")
    return int(wrong > 0)
