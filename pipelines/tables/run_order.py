"""The order of runs: each has a number, one higher than all others of its output folder.

Clocks of machines differ and are set back, so no order rests on them. Numbers are given under the
lock of the output folder. The highest one stands in the records and in the tables, so that neither
loss restarts the count.
"""

from __future__ import annotations

import datetime
import re

from ops.storage import files
from ops.storage.paths import Out
from pipelines.tables import current_scores, run_records

_NIGHT = re.compile(r"(\d+)-.*\.json")
_HIGHEST = """
    SELECT coalesce(max(run_number), 0)
    FROM read_parquet(getvariable('tables'), hive_partitioning = false)
"""


def next_number(out: Out) -> int:
    """The number of a run that starts now."""
    with current_scores.opened(out) as database:
        [(highest,)] = database.sql(_HIGHEST).fetchall()
    numbers = [int(record["number"]) for record in run_records.started(out)]
    return 1 + max([int(highest), *numbers])


def name_of_night(out: Out, start: datetime.datetime) -> str:
    """The name of the record of a night that starts now; names sort in the order of nights."""
    numbers = [int(match[1]) for name in files.names(out.nights()) if (match := _NIGHT.match(name))]
    return f"{1 + max(numbers, default=0):08d}-{start:%Y-%m-%dT%H-%M-%S}"


def clock_warning(out: Out, now: datetime.datetime) -> str:
    """A sentence if the last run or night started later than `now`, which is in UTC; else empty."""
    last = [run_records.last_night(out), *run_records.started(out)[-1:]]
    starts = [str(record["started"]) for record in last if "started" in record]
    time = now.isoformat(timespec="seconds")
    if not starts or max(starts) <= time:
        return ""
    return (
        f"the clock of this machine says {time}, but the last run started at {max(starts)}: one of "
        "the clocks was or is wrong. The order of runs does not depend on clocks, but the date of "
        "a night does: set the clock, or name the night with --night"
    )
