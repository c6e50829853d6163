"""A detector for each of many products: `python -m tests.faults products 5000`.

A fit of four images of each product, then a night over one more; jobs in processes of their own, on
clusters of two CPUs.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ops.storage.paths import Out
from pipelines.tables import run_records
from tests.faults.processes import watched
from tests.faults.warehouse import published

GOOD, SIZE = 4, 32
MODEL = ["--backbone.name", "squeezenet1_1", "--backbone.layers", "features.3"]
MODEL += ["--backbone.weights", "random", "--input.size", "32"]
MODEL += ["--patchcore.embedding", "concat", "--patchcore.coreset_ratio", "0.1"]


def draw(place: Path, products: int, first: int, count: int) -> None:
    """Small pictures of noise in a tar: so many of each product."""
    rng = np.random.default_rng(first)
    with tarfile.open(place, "w") as tar:
        for product in range(products):
            for number in range(first, first + count):
                file = io.BytesIO()
                pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file, "BMP")
                info = tarfile.TarInfo(f"part-{product:05d}/{number}.bmp")
                info.size = len(file.getvalue())
                tar.addfile(info, io.BytesIO(file.getvalue()))


def run(job: str, words: list[str]) -> None:
    """A job to its end: its seconds, and the memory of all its processes."""
    began = time.monotonic()
    _, samples = watched(job, words, every=5.0)  # each look takes a fifth of a second
    seconds = time.monotonic() - began
    peak = max(sum(sample.held.values()) for sample in samples) / 2**20
    driver = max(sample.held.get("driver", 0) for sample in samples) / 2**20
    print(f"| {job} | {seconds:.0f} | {peak:,.0f} | {driver:,.0f} |", flush=True)


def main(words: list[str]) -> None:
    """Print seconds and memory for so many products (5,000)."""
    products = int(words[0]) if words else 5_000
    with tempfile.TemporaryDirectory(prefix="nightloupe-products-") as name:
        folder = Path(name)
        draw(folder / "good.tar", products, 0, GOOD)
        draw(folder / "night.tar", products, GOOD, 1)
        model, out = str(folder / "model"), str(folder / "out")
        where = ["--pattern", "{product}/{name}", "--out", out]
        print(f"{products:,} products, {GOOD} good images of each")
        print("| job | s | MiB (PSS), all processes | of which the driver |\n|---|---|---|---|")
        fit = ["--archive", str(folder / "good.tar"), *where, "--model-folder", model, *MODEL]
        run("fit", [*fit, "--name", "parts", "--holdout", "0.25"])
        files = list(Path(model).rglob("*"))
        size = sum(file.stat().st_size for file in files) / 2**20
        print(f"model folder: {len(files):,} files, {size:,.0f} MiB")
        archive = ["--archive", str(folder / "night.tar"), *where, "--model", model]
        run("nightly", [*archive, "--maps", "none"])
        record = run_records.finished(Out(out))
        assert record["totals"]["images"] == len(published(out)) == products
