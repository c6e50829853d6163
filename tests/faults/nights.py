"""Nights at once on one cluster of six CPUs: `python -m tests.faults nights 2000`.

Two and three nights with output folders of their own, one after the other, then all at once. All
must end with a row for each image.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from ops.storage.paths import Out
from pipelines.tables import run_records
from tests.cluster import Cluster
from tests.faults.warehouse import Warehouse, build, published, start


def begin(cluster: Cluster, warehouse: Warehouse, out: str) -> subprocess.Popen:
    """Start a night that scores all images of the warehouse."""
    words = ["--archive", f"{warehouse.root}/parts", "--pattern", "{product}/{name}"]
    words += ["--model", warehouse.model, "--out", out, "--maps", "none", "--report", "false"]
    return start("nightly", words, f"{out}.log", {"RAY_ADDRESS": cluster.address})


def end(job: subprocess.Popen, warehouse: Warehouse, out: str) -> None:
    """Wait for a night, and check that each image has its row."""
    said = Path(f"{out}.log")
    assert job.wait(1800) == 0, said.read_text()
    record = run_records.finished(Out(out))
    assert record["totals"]["images"] == len(published(out)) == warehouse.images


def one_after_the_other(cluster: Cluster, warehouse: Warehouse, outs: list[str]) -> None:
    """Each night starts when the one before has ended."""
    for out in outs:
        end(begin(cluster, warehouse, out), warehouse, out)


def at_once(cluster: Cluster, warehouse: Warehouse, outs: list[str]) -> None:
    """All nights start in one moment."""
    jobs = [begin(cluster, warehouse, out) for out in outs]
    for job, out in zip(jobs, outs, strict=True):
        end(job, warehouse, out)


def main(words: list[str]) -> None:
    """Print the table, for so many images (2,000) a night."""
    images = int(words[0]) if words else 2_000
    with tempfile.TemporaryDirectory(prefix="nightloupe-nights-") as folder:
        warehouse = build(f"{folder}/warehouse", images)
        cluster = Cluster(os.environ | {"OMP_NUM_THREADS": "1"}, 6)
        try:
            print("| nights | one after the other, s | at once, s | rows | at once, they said |")
            print("|---|---|---|---|---|")
            for count in (2, 3):
                seconds = []
                for how in (one_after_the_other, at_once):
                    outs = [f"{folder}/{count}-{how.__name__}-{n}" for n in range(count)]
                    began = time.monotonic()
                    how(cluster, warehouse, outs)
                    seconds.append(time.monotonic() - began)
                rows = f"{count} x {images:,}"
                said = "; ".join(filter(None, (_waited(f"{out}.log") for out in outs))) or "nothing"
                figures = f"{seconds[0]:.0f} | {seconds[1]:.0f} | {rows}"
                print(f"| {count} | {figures} | {said} |", flush=True)
        finally:
            cluster.end()


def _waited(log: str) -> str:
    """What a night said of the other ones, without the time."""
    said = Path(log).read_text().splitlines()
    return "; ".join(line.partition("WARNING ")[2] for line in said if "cluster" in line)
