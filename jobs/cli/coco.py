"""Regions as a COCO file, which labelling tools read and jobs.label takes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ops.storage import files
from pipelines.labelling.coco_file import ANOMALY, CATEGORIES

SUFFIX = ".json"
#: What COCO has no field for, as attributes, which tools show and keep.
_ATTRIBUTES = ("image_id", "run_id", "number", "largest", "p_value", "touches_border")
#: Columns that a COCO file is made of.
COLUMNS = (
    *("uri", "width", "height", "box_x", "box_y", "box_width", "box_height", "area"),
    *_ATTRIBUTES,
)
_CATEGORY_IDS = {name: number for number, name in CATEGORIES.items()}


def write(location: str, rows: Iterator[pa.RecordBatch], model: str) -> int:
    """Write regions with `COLUMNS`; returns their number.

    Images and annotations are numbered from 1. `file_name` is the address of the image. Annotations
    have the category `anomaly`; other categories are the decisions that people can give instead.
    The content is held in memory.
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
        "categories": [
            {"id": number, "name": name, "supercategory": ANOMALY}
            for name, number in _CATEGORY_IDS.items()
        ],
    }
    files.write_bytes(location, json.dumps(content, allow_nan=False).encode())
    return len(annotations)


def _annotation(row: dict[str, Any], number: int, image: int) -> dict[str, Any]:
    attributes = {name: row[name] for name in _ATTRIBUTES}
    return {
        "id": number,
        "image_id": image,
        "category_id": _CATEGORY_IDS[ANOMALY],
        "bbox": [row["box_x"], row["box_y"], row["box_width"], row["box_height"]],
        "area": row["area"],
        "iscrowd": 0,
        "segmentation": [],
        "attributes": {"region": attributes.pop("number"), **attributes},
    }
