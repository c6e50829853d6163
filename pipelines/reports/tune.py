"""Proposals of false-alarm rates, from the current scores of a model and what people decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import duckdb
import numpy as np

from ops.archives.layouts import composed
from ops.archives.views import detector_sql, views_of
from ops.results.calibration import promised_rate
from ops.results.decision_table import DEFECT, FALSE_ALARM
from ops.results.tuning import Costs, Levels, Proposal, propose
from ops.storage.paths import Out
from pipelines.tables import current_scores, gone

#: Images by detector, p-value and decision. A decision is of the bytes, whatever model was shown.
_COUNTS = """
    SELECT nfc_normalize({detector}) AS detector, p_value, decided, count(*) AS images
    FROM decided_scores($model) ANTI JOIN gone USING (image_id, run_id)
    WHERE status = 'ok' AND p_value IS NOT NULL AND product IS NOT NULL
    GROUP BY ALL
"""


def tune(out: Out, record: Mapping[str, Any], costs: Costs) -> dict[str, Proposal | None]:
    """A proposal for each detector of a model, by the record of one of its runs.

    Over all current images that are still in the archive. None where no image was held out, so that
    there are no p-values.
    """
    listing = gone.newest_listing(out)

    def read(database: duckdb.DuckDBPyConnection, _: Callable[[], None]) -> list[dict[str, Any]]:
        gone.create(database, record["model_id"], listing)
        counts = _COUNTS.format(detector=detector_sql(views_of(record)))
        found = database.sql(counts, params={"model": record["model_id"]})
        return list(found.to_arrow_table().to_pylist())

    others = (listing.location,) if listing else ()
    rows = current_scores.read_consistently(out, read, "2GB", *others, labels=True)
    proposals: dict[str, Proposal | None] = {}
    for name, held_out in sorted(record["held_out"].items()):
        detector = composed(name)
        mine = [row for row in rows if row["detector"] == detector]
        present = round(promised_rate(record["false_alarm_rates"][name], held_out) * (held_out + 1))
        proposals[detector] = propose(_levels(mine, held_out), present, costs) if held_out else None
    return proposals


def _levels(rows: list[dict[str, Any]], held_out: int) -> Levels:
    """Counts of the images of one detector by p-value."""
    images, defects, alarms = np.zeros((3, held_out + 1), np.int64)
    for row in rows:
        level = round(row["p_value"] * (held_out + 1)) - 1
        images[level] += row["images"]
        defects[level] += row["images"] * (row["decided"] == DEFECT)
        alarms[level] += row["images"] * (row["decided"] == FALSE_ALARM)
    return Levels(images, defects, alarms)
