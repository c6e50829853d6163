"""Counts of rows of the current view by the values of some columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.storage.parquet import column

#: What is counted of each group.
COUNTS = (
    column("images", pa.int64(), "images of the group"),
    column("failed", pa.int64(), "images without a score"),
    column("anomalous", pa.int64(), "images that are called anomalous"),
    column("share", pa.float64(), "anomalous images of those with a verdict; null without any"),
)
_AGGREGATES = [
    ("is_ok", "sum"),
    ("is_anomalous", "count"),
    ("is_anomalous", "sum"),
    ([], "count_all"),
]


def count_groups(
    batches: Iterable[pa.RecordBatch],
    by: Sequence[str],
    value_of: Callable[[pa.RecordBatch, str], pa.Array],
) -> list[dict[str, Any]]:
    """A row for each group: its values of `by` and `COUNTS`, the largest share first.

    `value_of` gives the column of a batch by a name of `by`. The groups must fit into memory.
    """
    totals: dict[tuple[str | None, ...], np.ndarray] = {}
    places = [str(number) for number in range(len(by))]
    for batch in batches:
        columns = [*(value_of(batch, name) for name in by), pc.equal(batch["status"], "ok")]
        names = [*places, "is_ok", "is_anomalous"]
        table = pa.table([*columns, batch["is_anomalous"]], names=names)
        found = table.group_by(places).aggregate(_AGGREGATES)
        counts = [found[name].fill_null(0).to_numpy() for name in found.column_names[len(by) :]]
        groups = zip(*(found[place].to_pylist() for place in places), strict=True)
        for key, each in zip(groups, np.stack(counts, axis=1).astype(np.int64), strict=True):
            totals[key] = totals.get(key, 0) + each
    rows = [_row(by, key, counts) for key, counts in totals.items()]
    return sorted(rows, key=lambda row: (-(row["share"] or 0), [row[name] or "" for name in by]))


def _row(by: Sequence[str], key: Sequence[str | None], counts: np.ndarray) -> dict[str, Any]:
    scored, judged, anomalous, images = counts.tolist()
    share = anomalous / judged if judged else None
    numbers = {"images": images, "failed": images - scored, "anomalous": anomalous, "share": share}
    return dict(zip(by, key, strict=True)) | numbers
