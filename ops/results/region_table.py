"""The table of regions: its schema, and how regions travel with the row of their image."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ops.storage.parquet import column

_MEASURED = (
    column("number", pa.int32(), "from 1 for each image, by falling largest value", False),
    column("box_x", pa.int32(), "left column of the bounding box, in pixels of the picture", False),
    column("box_y", pa.int32(), "top row of the bounding box, in pixels of the picture", False),
    column("box_width", pa.int32(), "in pixels of the picture", False),
    column("box_height", pa.int32(), "in pixels of the picture", False),
    column("area", pa.float64(), "in pixels of the picture", False),
    column("centroid_x", pa.float64(), "in pixels of the picture", False),
    column("centroid_y", pa.float64(), "in pixels of the picture", False),
    column("largest", pa.float64(), "largest value of the map in the region", False),
    column("mean", pa.float64(), "mean value of the map in the region", False),
    column("p_value", pa.float64(), "share of good images whose map has as large a value", False),
    column(
        "touches_border", pa.bool_(), "it reaches the border of what the map shows of it", False
    ),
)
SCHEMA = pa.schema(
    [
        column("image_id", pa.string(), "the image, as in the score table", False),
        *_MEASURED,
        column("model_id", pa.string(), "hash of the model's content", False),
        column("run_id", pa.string(), "the run that wrote this row, as in the score table", False),
    ],
    metadata={"nightloupe": "regions 1"},
)
#: The columns that say what a region is like.
MEASURED = tuple(each.name for each in _MEASURED)
#: The regions of one image, as a value in its row.
LIST = pa.list_(pa.struct([pa.field(each.name, each.type) for each in _MEASURED]))


def unnested(rows: pa.Table) -> pa.Table:
    """The rows of the table of regions from score rows with a column `regions` of type `LIST`."""
    lists = rows["regions"].combine_chunks()
    measured = pc.list_flatten(lists)
    of = rows.take(pc.list_parent_indices(lists))
    columns = {name: of[name] for name in ("image_id", "model_id", "run_id")} | {
        each.name: measured.field(place) for place, each in enumerate(_MEASURED)
    }
    return pa.table([columns[name] for name in SCHEMA.names], names=SCHEMA.names).cast(SCHEMA)
