"""Run all steps in a minute or two, on drawn images of two products, some with defects.

python -m jobs.demo
python -m jobs.demo --out /tmp/demo --images 80
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
from PIL import Image

from jobs import evaluate, fit, inventory, score
from jobs.cli import entry
from jobs.cli.console import echo
from jobs.tracking.tracker import Tracker
from ops.images import synthetic_parts
from ops.redact import redact
from ops.results import overlays
from ops.storage import parquet, uris
from ops.storage.paths import Out
from ops.storage.storage_errors import storage_errors
from pipelines.cluster.connection import connected
from pipelines.tables import run_records


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.demo."""

    out: str = "demo"
    """The folder for images, model, scores and maps."""
    images: int = 40
    """Number of good images of each product to fit on. A third as many more are scored."""
    size: int = 128
    """Side of the images in pixels."""


def main(argv: Sequence[str]) -> int:
    """Draw images, take an inventory, fit, score and evaluate."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    out, archive = Out(settings.out), os.path.join(settings.out, "archive")
    if not os.path.exists(archive):
        draw(f"{archive}.drawing", settings)
        os.rename(f"{archive}.drawing", archive)  # only a complete archive has the name
    listed = os.path.join(settings.out, "inventory.parquet")
    with connected():
        echo("\n1. inventory")
        inventory.main(["--archive", archive, "--layout", "mvtec", "--output", listed])
        echo("\n2. fit")
        fit.main([
            "--inventory", listed, "--out", settings.out, "--name", "demo", "--alias", "champion",
            "--backbone.name", "resnet18", "--backbone.layers", "layer1,layer2",
            "--backbone.weights", "random", "--input.size", str(settings.size),
            "--patchcore.embedding", "concat", "--patchcore.coreset_ratio", "0.02",
            "--holdout", "0.2", "--false-alarm-rate", "0.1",
        ])  # fmt: skip
        echo("\n3. score")
        score.main([
            "--inventory", listed, "--out", settings.out, "--model", "models:/demo@champion",
            "--maps", "all", "--overlays", "true",
        ])  # fmt: skip
        echo("\n4. evaluate")
        evaluate.main(["--out", settings.out])
    print_summary(out, settings)
    return 0


def draw(archive: str, settings: Settings) -> None:
    """Draw an archive in the layout of MVTec AD, with five broken files."""
    test = max(4, settings.images // 3)
    for product in synthetic_parts.PRODUCTS:
        for i in range(settings.images + test):
            split = "train" if i < settings.images else "test"
            picture, _ = synthetic_parts.draw(product, i, settings.size)
            _save(picture, archive, product, split, "good", f"{i:03d}.png")
        for number, defect in enumerate(synthetic_parts.DEFECTS):
            for i in range(test // 2 + 1):
                seed = 1000 + 100 * number + i
                picture, mask = synthetic_parts.draw(product, seed, settings.size, defect)
                _save(picture, archive, product, "test", defect, f"{i:03d}.png")
                _save(mask, archive, product, "ground_truth", defect, f"{i:03d}_mask.png")
    _break(os.path.join(archive, "washer", "test", "good"))
    echo("drew images of two products, and five broken files")


def _save(pixels: synthetic_parts.Image, archive: str, *parts: str) -> None:
    path = os.path.join(archive, *parts)
    with storage_errors(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.fromarray(pixels).save(path)


def _break(folder: str) -> None:
    """Add files as archives contain them: cut, empty, damaged, or something else than an image."""
    jpeg = io.BytesIO()
    Image.fromarray(synthetic_parts.draw("washer", 0).picture).save(jpeg, "JPEG")
    data = jpeg.getvalue()
    frames = io.BytesIO()
    Image.new("L", (8, 8)).save(
        frames, "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 255)]
    )
    broken = {
        "cut_upload.jpg": data[: len(data) // 2],
        "empty.png": b"",
        "notes.png": b"not a picture\n",
        "animation.gif": frames.getvalue(),
        "damaged.jpg": data[:2] + b"\x00" * 200,
    }
    for name, content in broken.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)


def print_summary(out: Out, settings: Settings) -> None:
    """Print the AUROC, where the results are, and a query to try."""
    record = run_records.finished(out)
    run_id = record["run_id"]
    table = record["totals"]["table"]
    auroc = parquet.read(out.evaluation(run_id)).to_pylist()[-1]["image_auroc"]
    picture = os.path.join(settings.out, "worst.png")
    _save_worst(table, out, record["model_id"], picture)
    columns = "product, status, count(*) AS images, round(max(score), 3) AS worst"
    source = f"FROM '{out.scores()}/**/*.parquet'"
    query = " ".join(["SELECT", columns, source, "GROUP BY ALL ORDER BY ALL"])
    echo(f"\nimage AUROC   {auroc:.3f} (mean of two products, with random weights)")
    echo(f"score table   {table}")
    echo(f"anomaly maps  {out.maps(record['model_id'])}")
    echo(f"worst images  {picture}")
    echo(f"tracker       {redact(str(Tracker(settings.out).uri))}")
    echo(f'\ntry this in .venv/bin/python:\n>>> import duckdb\n>>> duckdb.sql("{query}")')
    echo(str(duckdb.sql(query)))


def _save_worst(table: str, out: Out, model_id: str, path: str) -> None:
    """Save a contact sheet of the six highest scores: each picture above its overlay."""
    rows = parquet.read(table, ["image_id", "uri", "score"])
    worst = rows.sort_by([("score", "descending")]).slice(0, 6).to_pylist()
    columns = []
    for row in worst:
        overlay = out.overlay(model_id, row["image_id"])
        pictures = map(Image.open, (uris.parse(row["uri"]).location, overlay))
        columns.append(overlays.sheet_column(pictures, side=192))
    overlays.contact_sheet(columns).save(path)


if __name__ == "__main__":
    entry.start(main)
