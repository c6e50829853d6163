"""The whole chain in a minute or two, on two products that it draws itself, some with defects.

python -m jobs.demo
python -m jobs.demo --out /tmp/demo --good 80
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
from jobs.tracking.tracker import Tracker, redact
from ops.images import synthetic_parts
from ops.storage import parquet, uris
from ops.storage.paths import Out
from pipelines.cluster.resources import connected
from pipelines.tables import run_records


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.demo."""

    out: str = "demo"
    """A folder; pictures, model, scores and maps land below it."""
    good: int = 40
    """Good pictures of each product to fit on; a third as many more are scored."""
    size: int = 128
    """Side of the pictures."""


def main(argv: Sequence[str]) -> int:
    """Draw, list, fit, score, evaluate."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    out, archive = Out(settings.out), os.path.join(settings.out, "archive")
    if not os.path.exists(archive):
        draw(f"{archive}.drawing", settings)
        os.rename(f"{archive}.drawing", archive)  # half a drawing is none
    listed = os.path.join(settings.out, "inventory.parquet")
    with connected():
        echo("\n1. inventory")
        inventory.main(["--archive", archive, "--layout", "mvtec", "--output", listed])
        echo("\n2. fit")
        fit.main([
            "--inventory", listed, "--out", settings.out, "--name", "demo",
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
    """Draw an archive in the layout of MVTec AD, with a handful of broken files among the rest."""
    test = max(4, settings.good // 3)
    for product in synthetic_parts.PRODUCTS:
        for i in range(settings.good + test):
            split = "train" if i < settings.good else "test"
            picture, _ = synthetic_parts.draw(product, i, settings.size)
            _save(picture, archive, product, split, "good", f"{i:03d}.png")
        for number, defect in enumerate(synthetic_parts.DEFECTS):
            for i in range(test // 2 + 1):
                seed = 1000 + 100 * number + i
                picture, mask = synthetic_parts.draw(product, seed, settings.size, defect)
                _save(picture, archive, product, "test", defect, f"{i:03d}.png")
                _save(mask, archive, product, "ground_truth", defect, f"{i:03d}_mask.png")
    _break(os.path.join(archive, "washer", "test", "good"))
    echo("drew two products, with five broken files among them")


def _save(pixels: synthetic_parts.Image, archive: str, *parts: str) -> None:
    path = os.path.join(archive, *parts)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(pixels).save(path)


def _break(folder: str) -> None:
    """What warehouses hold: cut uploads, empty files, other things under an image's name."""
    whole = io.BytesIO()
    Image.fromarray(synthetic_parts.draw("washer", 0).picture).save(whole, "JPEG")
    data = whole.getvalue()
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
    """Where everything lies, how good it was, and one query to try."""
    record = run_records.finished(out)
    run_id = record["run_id"]
    table = record["totals"]["table"]
    auroc = parquet.read(out.evaluation(run_id)).to_pylist()[-1]["image_auroc"]
    picture = os.path.join(settings.out, "worst.png")
    _montage(table, out, record["model_id"], picture)
    place = f"FROM '{out.scores()}/**/*.parquet'"
    what = "product, status, count(*) AS images, round(max(score), 3) AS worst"
    query = " ".join(["SELECT", what, place, "GROUP BY ALL ORDER BY ALL"])
    echo(f"\nimage AUROC  {auroc:.3f} (mean over two products; random weights)")
    echo(f"table        {table}")
    echo(f"maps         {out.maps(record['model_id'])}")
    echo(f"worst parts  {picture}")
    echo(f"tracker      {redact(str(Tracker(settings.out).uri))}")
    echo(f'\ntry, in .venv/bin/python:\n>>> import duckdb\n>>> duckdb.sql("{query}")')
    echo(str(duckdb.sql(query)))


def _montage(table: str, out: Out, model_id: str, path: str) -> None:
    """The six highest scores: each picture above its map."""
    found = parquet.read(table, ["image_id", "uri", "score"])
    worst = found.sort_by([("score", "descending")]).slice(0, 6).to_pylist()
    side = 192
    canvas = Image.new("RGB", (side * len(worst), side * 2))
    for column, part in enumerate(worst):
        over = out.overlay(model_id, part["image_id"])
        for row, place in enumerate((uris.parse(part["uri"]).location, over)):
            with Image.open(place) as image:
                canvas.paste(image.convert("RGB").resize((side, side)), (column * side, row * side))
    canvas.save(path)


if __name__ == "__main__":
    entry.start(main)
