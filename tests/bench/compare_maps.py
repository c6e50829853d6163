"""Draws the anomaly maps of several runs over the same images, one run per row of a plot.

`python -m tests.bench.compare_maps INVENTORY OUT OUT PNG` draws ten defective images, two of each
kind of defect.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ops.archives.inventory import Inventory
from ops.results import map_png
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.tables import run_records

#: Images, and images of each kind of defect.
COUNT, PER_KIND = 10, 2
SIDE = 112


def select_images(inventory: Inventory) -> list[dict[str, Any]]:
    """Rows of defective images, spread evenly over the sorted names of each kind of defect."""
    rows = [row for row in inventory.read().to_pylist() if row["label"] == 1]
    kinds = sorted({row["defect"] for row in rows})
    selected = []
    for kind in kinds:
        of_kind = sorted((row for row in rows if row["defect"] == kind), key=lambda r: r["uri"])
        step = len(of_kind) / (PER_KIND + 1)
        selected += [of_kind[int(step * (n + 1))] for n in range(PER_KIND)]
    return selected[:COUNT]


def maps_of(out: Out, images: list[dict[str, Any]]) -> tuple[str, Iterator[np.ndarray]]:
    """The method of the last run, and its map (h, w) of each image."""
    record = run_records.finished(out)
    scored = parquet.read(record["totals"]["table"], ["image_id", "map_uri"]).to_pylist()
    places = {row["image_id"]: row["map_uri"] for row in scored}
    card = files.read_json(files.join(out.model(record["model_id"]), "model.json"))
    contents = (files.read_bytes(uris.parse(places[row["image_id"]]).location) for row in images)
    return card["method"], (map_png.decode(data).values() for data in contents)


def picture(uri: str) -> np.ndarray:
    """A picture in grey, squashed to a square as for the detectors."""
    with Image.open(uris.parse(uri).location) as image:
        return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def main(inventory: str, *places: str) -> None:
    """Draw the plot. Colours span each run's values from the 5th percentile to the maximum."""
    *outs, path = places
    images = select_images(Inventory(inventory))
    figure = Figure(figsize=(COUNT * 0.95, (2 + len(outs)) * 1.0), layout="constrained")
    grid = figure.subplots(2 + len(outs), COUNT)
    for column, row in enumerate(images):
        grid[0][column].imshow(picture(row["uri"]), cmap="gray")
        grid[0][column].set_title(row["defect"].removeprefix("MT_"), fontsize=7)
        grid[1][column].imshow(picture(row["mask_uri"]) >= 128, cmap="gray")
    for line, out in enumerate(outs, start=2):
        method, maps = maps_of(Out(out), images)
        values = np.stack(list(maps))
        low, high = np.percentile(values, 5), values.max()
        for column, value in enumerate(values):
            grid[line][column].imshow(value, cmap="inferno", vmin=low, vmax=high)
        grid[line][0].set_ylabel(method, fontsize=7)
    for panel in grid.flat:
        panel.set(xticks=[], yticks=[])
    figure.savefig(Path(path), dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
