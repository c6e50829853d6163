"""One long scoring run: `python -m tests.faults memory 100000`, memory and speed from end to end.

The job runs as people start it, in a process of its own on a cluster of its own of two CPUs. Small
images make the most of rows and blocks, so of whatever could pile up with their number.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ops.archives.inventory import Inventory
from ops.detectors.model_folder import write_model
from ops.images import synthetic_parts
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.tables import run_records
from tests.conftest import tiny_model
from tests.faults.processes import Sample, watched
from tests.faults.reading import listed

PART, PER_TAR = 100, 10_000
#: Images until workers have what they need and every stage is full.
WARM_UP = 2_000
SLOTS = ("--resources.workers", "2", "--resources.cpus", "0.5", "--resources.batch", "32")


def draw(folder: Path, count: int) -> None:
    """So many different small pictures, in tars."""
    base = Image.fromarray(synthetic_parts.draw("washer", 0, 32).picture)
    out = io.BytesIO()
    base.save(out, "BMP")
    head, pixels = out.getvalue()[:54], np.frombuffer(out.getvalue()[54:], np.uint8)
    rng = np.random.default_rng(0)
    for start in range(0, count, PER_TAR):
        with tarfile.open(folder / f"{start:07d}.tar", "w") as tar:
            for number in range(start, min(start + PER_TAR, count)):
                noise = rng.integers(0, 8, len(pixels), dtype=np.uint8)
                data = head + (pixels ^ noise).tobytes()
                info = tarfile.TarInfo(f"{number:07d}.bmp")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def score(folder: Path, inventory: Inventory) -> list[Sample]:
    """The job, watched."""
    write_model(str(folder / "model"), tiny_model("part"))
    words = ["--inventory", inventory.location, "--model", str(folder / "model")]
    words += ["--out", str(folder / "out"), "--maps", "none", "--chunk-rows", str(PART), *SLOTS]
    work = folder / "out" / "_work"
    said, samples = watched("score", words, lambda: PART * len(list(work.glob("*/part-*.parquet"))))
    print("\n".join(said.strip().splitlines()[-3:]))
    return samples


def rate(samples: Sequence[Sample], first: int, last: int) -> float:
    """Images a second between two counts, from a moment that a part was finished to another."""
    begin = next((x for x in reversed(samples) if x.done <= first), samples[0])
    begin = next(x for x in samples if x.done == begin.done)
    end = next((x for x in samples if x.done >= last), samples[-1])
    end = next(x for x in samples if x.done == end.done)
    return (end.done - begin.done) / (end.seconds - begin.seconds)


def report(samples: Sequence[Sample], count: int) -> None:
    """The two tables."""
    early = [sample for sample in samples if sample.done <= count // 10]
    kinds = sorted({kind for sample in samples for kind in sample.held})
    print(
        f"\n| MiB (PSS), at most | in the first {count // 10:,} images | in all {count:,} | more |"
    )
    print("|---|---|---|---|")
    for kind in [*kinds, "largest detector", "all"]:
        first, last = (_peak(these, kind) for these in (early, samples))
        print(f"| {kind} | {first:.0f} | {last:.0f} | {last / max(first, 1) - 1:+.1%} |")
    scoring = [sample for sample in samples if sample.done]
    tenth = (count - WARM_UP) // 10
    first = rate(scoring, WARM_UP, WARM_UP + tenth)
    last = rate(scoring, count - tenth, count)
    print(f"\nimages/s: {first:.1f} in the first tenth after {WARM_UP:,}, ", end="")
    print(f"{last:.1f} in the last: {last / first - 1:+.1%}")
    for decile in range(10):
        begin = WARM_UP + decile * tenth
        inside = [sample for sample in samples if begin <= sample.done <= begin + tenth]
        held = np.median([sum(sample.held.values()) for sample in inside]) / 2**20
        print(f"  tenth {decile + 1}: {rate(scoring, begin, begin + tenth):.1f} images/s", end="")
        print(f", {held:.0f} MiB (median of all processes)")


def _peak(samples: Sequence[Sample], kind: str) -> float:
    if kind == "all":
        return max(sum(sample.held.values()) for sample in samples) / 2**20
    if kind == "largest detector":
        return max(sample.largest.get("detectors", 0) for sample in samples) / 2**20
    return max(sample.held.get(kind, 0) for sample in samples) / 2**20


def main(words: list[str]) -> None:
    """Score so many images (100,000), and print the tables."""
    count = int(words[0]) if words else 100_000
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as name:
        folder = Path(name)
        (folder / "parts").mkdir()
        draw(folder / "parts", count)
        inventory = listed(folder / "parts", folder / "parts.parquet")
        samples = score(folder, inventory)
        record = run_records.finished(Out(str(folder / "out")))
        table = parquet.read(record["totals"]["table"], ["status", "image_id"])
        assert table["status"].to_pylist() == ["ok"] * count
        assert len(set(table["image_id"].to_pylist())) == count
        report(samples, count)
