"""Fits that are killed: `python -m tests.faults fits --runs 12 --seed 1`.

SIGKILL for the driver or a worker of a gradient fit at random moments: while it gathers images,
trains, scores the held-out images, or writes the model. The folder must then hold no model or the
whole one, and the same command must end with the model of an undisturbed fit: the same id, and the
same bytes in all files but the card, which names times.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cluster import Cluster
from tests.faults.warehouse import Warehouse, build, start

IMAGES, LIMIT = 48, 600
WORDS = ["--method", "fastflow", "--fastflow.epochs", "6", "--fastflow.blocks", "2"]
WORDS += ["--fastflow.hidden", "0.1", "--fastflow.batch", "8", "--holdout", "0.25"]
WORDS += ["--backbone.name", "squeezenet1_1", "--backbone.layers", "features.3"]
WORDS += ["--backbone.weights", "random", "--input.size", "64", "--resources.workers", "2"]
WORDS += ["--resources.batch", "4", "--resources.stall_timeout", "120", "--max_failed", "10"]


def begin(cluster: Cluster, warehouse: Warehouse, folder: str) -> subprocess.Popen:
    """Start a fit."""
    words = ["--inventory", warehouse.listed, "--model-folder", folder, "--out", f"{folder}-out"]
    return start("fit", [*words, *WORDS], f"{folder}.log", {"RAY_ADDRESS": cluster.address})


def content(folder: str) -> dict[str, str]:
    """A hash of each file of a model; of its card the id alone."""
    found = {}
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file() and not file.name.startswith((".", "_")) and "_leases" not in file.parts:
            found[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
    card = json.loads(Path(folder, "model.json").read_text())
    return found | {"model.json": str(card["model_id"])}


def kill(cluster: Cluster, job: subprocess.Popen, what: str, rng: random.Random) -> str:
    """Kill the driver, or a process of the fit on the cluster; what it was."""
    if what == "driver":
        job.kill()
        return what
    workers = cluster.workers()
    if not workers:
        return "nothing, as no worker runs"
    pid, name = rng.choice(workers)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return name


def attempt(
    cluster: Cluster, warehouse: Warehouse, folder: str, usual: float, rng: random.Random
) -> tuple[str, list[str]]:
    """One fit that is killed, and the same command again: a row of the table, and what is wrong."""
    what, when = rng.choice(["driver", "worker"]), rng.uniform(0.25, 1.0)
    job, wrong, killed = begin(cluster, warehouse, folder), [], "nothing, as it had ended"
    try:
        job.wait(when * usual)
    except subprocess.TimeoutExpired:
        killed = kill(cluster, job, what, rng)
    code = job.wait(LIMIT)
    said = Path(f"{folder}.log").read_text()
    model = Path(folder, "model.json")
    if code == 0 and not model.exists():
        wrong.append("it ended without a model")
    if code not in (0, -signal.SIGKILL) and "\nerror: " not in f"\n{said}":
        wrong.append(f"it ended with {code} and no sentence")
    if "Traceback" in said:
        wrong.append("it showed a traceback")
    if code and (second := begin(cluster, warehouse, folder).wait(LIMIT)):
        wrong.append(f"the same command ended with {second}")
    return f"{killed} | {when:.0%} | {'finished' if code == 0 else f'exit {code}'}", wrong


def main(argv: list[str]) -> int:
    """Print the table; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults fits")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    settings = parser.parse_args(argv)
    rng, failed = random.Random(settings.seed), 0
    with tempfile.TemporaryDirectory(prefix="nightloupe-fits-") as folder:
        warehouse = build(f"{folder}/warehouse", IMAGES)
        cluster = Cluster(os.environ | {"OMP_NUM_THREADS": "1"}, 6)
        try:
            began = time.monotonic()
            code = begin(cluster, warehouse, f"{folder}/model").wait(LIMIT)
            assert code == 0, Path(f"{folder}/model.log").read_text()
            usual, right = time.monotonic() - began, content(f"{folder}/model")
            print(f"an undisturbed fit took {usual:.0f} s")
            print("| | killed | after | the fit | as promised |\n|---|---|---|---|---|")
            for number in range(1, settings.runs + 1):
                place = f"{folder}/model-{number}"
                row, wrong = attempt(cluster, warehouse, place, usual, rng)
                if not wrong and content(place) != right:
                    wrong = ["another model"]
                print(f"| {number} | {row} | {'; '.join(wrong) or 'yes'} |", flush=True)
                failed += bool(wrong)
        finally:
            cluster.end()
    print(f"{settings.runs} fits, {failed} of them wrong")
    return int(failed > 0)
