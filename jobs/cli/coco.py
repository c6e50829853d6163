"""Regions as a COCO file, which labelling tools read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ops.storage import files

SUFFIX = ".json"
#: Columns that a COCO file is made of.
COLUMNS = (
    *("image_id", "uri", "width", "height", "box_x", "box_y", "box_width", "box_height"),
    *("area", "largest", "p_value", "touches_border"),
)
_CATEGORY = {"id": 1, "name": "anomaly", "supercategory": "anomaly"}


def write(location: str, rows: Iterator[pa.RecordBatch], model: str) -> int:
    """Write regions with `COLUMNS`; returns their number.

    Images and annotations are numbered from 1. `file_name` is the address of the image, and
    `nightloupe` holds what COCO has no field for. The content is held in memory.
    """
    images: dict[str, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for batch in rows:
        for row in batch.to_pylist():
            image = images.setdefault(
                row["image_id"],
                {
                    "id": len(images) + 1,
                    "file_name": row["uri"],
                    "width": row["width"],
                    "height": row["height"],
                },
            )
            annotations.append(_annotation(row, len(annotations) + 1, image["id"]))
    content = {
        "info": {"description": f"regions of anomaly maps under {model}"},
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [_CATEGORY],
    }
    files.write_bytes(location, json.dumps(content, allow_nan=False).encode())
    return len(annotations)


def _annotation(row: dict[str, Any], number: int, image: int) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": _CATEGORY["id"],
        "bbox": [row["box_x"], row["box_y"], row["box_width"], row["box_height"]],
        "area": row["area"],
        "iscrowd": 0,
        "segmentation": [],
        "nightloupe": {name: row[name] for name in ("largest", "p_value", "touches_border")},
    }
