"""The table of parts: one row for each part of several images, judged by its worst view."""

from __future__ import annotations

import pyarrow as pa

from ops.storage.parquet import column

SCHEMA = pa.schema(
    [
        column("product", pa.string(), "what the part is", False),
        column("part", pa.string(), "which part of the product", False),
        column("worst_view", pa.string(), "the view that is most anomalous; null if none is known"),
        column("image_id", pa.string(), "the worst image of that view; null if none has a score"),
        column("uri", pa.string(), "address of that image"),
        column("score", pa.float64(), "its score"),
        column("image_p_value", pa.float64(), "its p-value among held-out images"),
        column(
            "p_value",
            pa.float64(),
            "share of held-out good parts as bad as this one; null where none has all of its views",
        ),
        column("is_anomalous", pa.bool_(), "p_value at or below the rate; null if unknown"),
        column("images", pa.int64(), "images of the part", False),
        column("views_scored", pa.int64(), "views with a score", False),
        column("views_failed", pa.int64(), "views whose images all failed", False),
        column("views_missing", pa.int64(), "views of the product without an image", False),
        column("failed_views", pa.string(), "their names, separated by commas; null if none"),
        column("missing_views", pa.string(), "their names, separated by commas; null if none"),
        column("model_id", pa.string(), "hash of the model's content", False),
    ],
    metadata={"nightloupe": "parts 1"},
)
