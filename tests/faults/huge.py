"""A picture of 100 megapixels among small ones: `python -m tests.faults huge 1000`.

The small ones are scored twice, without it and beside it, with tiles, maps and regions, by the job
as people start it, on a cluster of its own of two CPUs. The scores must be equal, and readers and
detectors may hold no more than docs/scoring.md says. It takes a few minutes.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import tifffile
from PIL import Image

from ops.detectors.model_folder import write_model
from ops.images import synthetic_parts
from ops.images.resize import InputSettings
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.tables import run_records
from tests.conftest import tiny_model
from tests.faults.processes import Sample, watched
from tests.faults.reading import listed

SMALL, SIDE = 200, 10_000
TILES = InputSettings(size=224, fit="tile", overlap=0.0)
MIB = 2**20
SLOTS = ("--resources.workers", "1", "--resources.batch", "16")
#: Bytes that a reader may hold beside what it holds without pictures; and with the huge one.
READER, DECODING = 512 * MIB, 14 * SIDE**2
#: What a detector may hold of it: the picture, and maps of a bounded number of pixels.
DETECTOR = 3 * SIDE**2 + 16 * TILES.map_pixels


def draw(folder: Path, count: int) -> None:
    """So many small pictures that all differ, in a folder."""
    folder.mkdir()
    parts = [synthetic_parts.draw("washer", seed, SMALL).picture for seed in range(20)]
    for number in range(count):
        picture = parts[number % 20].copy()
        picture[number % SMALL, number // SMALL] = 255
        Image.fromarray(picture).save(folder / f"{number:05d}.bmp")


def draw_huge(folder: Path) -> None:
    """The huge one, between them by name."""
    lines = synthetic_parts.draw("fabric", 0, 500).picture
    wide = np.tile(lines, (SIDE // 500, SIDE // 500, 1))
    tifffile.imwrite(folder / "00500.tif", wide, photometric="rgb", rowsperstrip=64)


def score(root: Path, name: str) -> tuple[pa.Table, list[Sample]]:
    """The published table, and the memory of the job."""
    inventory = listed(root / "parts", root / f"{name}.parquet")
    words = ["--inventory", inventory.location, "--model", str(root / "model")]
    words += ["--out", str(root / name), "--maps", "all", "--chunk-rows", "100", *SLOTS]
    _, samples = watched("score", words, every=0.25)
    record = run_records.finished(Out(str(root / name)))
    columns = ["image_id", "status", "score", "p_value", "peak_x", "peak_y"]
    return parquet.read(record["totals"]["table"], columns), samples


def largest(samples: list[Sample], kind: str) -> int:
    """Bytes of the largest process of a kind, at most."""
    return max(sample.largest.get(kind, 0) for sample in samples)


def main(words: list[str]) -> int:
    """Score so many images (1,000), print the table; 1 if a bound or a score is wrong."""
    count = int(words[0]) if words else 1000
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as name:
        root = Path(name)
        model = tiny_model("part")
        write_model(str(root / "model"), replace(model, card=replace(model.card, input=TILES)))
        draw(root / "parts", count)
        small, quiet = score(root, "without")
        draw_huge(root / "parts")
        both, busy = score(root, "with")
    assert both["status"].to_pylist() == ["ok"] * (count + 1), set(both["status"].to_pylist())
    rows = {row["image_id"]: row for row in both.to_pylist()}
    equal = all(rows[row["image_id"]] == row for row in small.to_pylist())
    print(f"{len(small)} small pictures have {'equal' if equal else 'OTHER'} rows beside it\n")
    print("| largest process, MiB (PSS) | without | with | more | allowed |\n|---|---|---|---|---|")
    wrong = not equal
    for kind, allowed in (("readers", READER + DECODING), ("detectors", DETECTOR)):
        before, after = largest(quiet, kind), largest(busy, kind)
        wrong |= not before or after - before > allowed
        figures = (before, after, after - before, allowed)
        print(f"| {kind} |", " | ".join(f"{bytes_ / MIB:,.0f}" for bytes_ in figures), "|")
    return int(wrong)
