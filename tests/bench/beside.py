"""Maps of two runs over the same images, one above the other.

`python -m tests.bench.beside INVENTORY OUT OUT PNG` draws ten defective images, two of each kind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ops.images.inventory import Inventory
from ops.results import anomaly_map
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.tables import run_records

#: Pictures, and how many of each kind of defect.
COUNT, OF_A_KIND = 10, 2
SIDE = 112


def chosen(inventory: Inventory) -> list[dict[str, Any]]:
    """Defective images, spread evenly over the names of each kind; no score has a say."""
    rows = [row for row in inventory.read().to_pylist() if row["label"] == 1]
    kinds = sorted({row["defect"] for row in rows})
    found = []
    for kind in kinds:
        of_kind = sorted((row for row in rows if row["defect"] == kind), key=lambda r: r["uri"])
        step = len(of_kind) / (OF_A_KIND + 1)
        found += [of_kind[int(step * (n + 1))] for n in range(OF_A_KIND)]
    return found[:COUNT]


def drawn(out: Out, images: list[dict[str, Any]]) -> tuple[str, Iterator[np.ndarray]]:
    """The method of the last run, and its map of each image."""
    record = run_records.finished(out)
    scored = parquet.read(record["totals"]["table"], ["image_id", "map_uri"]).to_pylist()
    places = {row["image_id"]: row["map_uri"] for row in scored}
    card = files.read_json(files.join(out.model(record["model_id"]), "model.json"))
    found = (files.read_bytes(uris.parse(places[row["image_id"]]).location) for row in images)
    return card["method"], (anomaly_map.decode(data).values() for data in found)


def picture(uri: str) -> np.ndarray:
    """As the detectors see it: squashed to a square."""
    with Image.open(uris.parse(uri).location) as image:
        return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def main(inventory: str, *places: str) -> None:
    """Each run's colours run from its 5th percentile over these images to its largest value."""
    *outs, path = places
    images = chosen(Inventory(inventory))
    figure = Figure(figsize=(COUNT * 0.95, (2 + len(outs)) * 1.0), layout="constrained")
    grid = figure.subplots(2 + len(outs), COUNT)
    for column, row in enumerate(images):
        grid[0][column].imshow(picture(row["uri"]), cmap="gray")
        grid[0][column].set_title(row["defect"].removeprefix("MT_"), fontsize=7)
        grid[1][column].imshow(picture(row["mask_uri"]) >= 128, cmap="gray")
    for line, out in enumerate(outs, start=2):
        method, values = drawn(Out(out), images)
        found = list(values)
        low, high = np.percentile(np.stack(found), 5), max(value.max() for value in found)
        for column, value in enumerate(found):
            grid[line][column].imshow(value, cmap="inferno", vmin=low, vmax=high)
        grid[line][0].set_ylabel(method, fontsize=7)
    for panel in grid.flat:
        panel.set(xticks=[], yticks=[])
    figure.savefig(Path(path), dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
