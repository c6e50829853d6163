"""Print statements for Athena that make every published table a partition of `scores`.

PYTHONPATH=. python deploy/sql/add_partitions.py s3://bucket/out

Athena passes over the partitions that it knows.
"""

from __future__ import annotations

import re
import sys

from ops.storage.paths import Out
from pipelines.tables.current_scores import published

_PARTITION = re.compile(r"(.*/night=([\d-]+)/run=([\w-]+))/[^/]+")


def statements(out: str) -> list[str]:
    """A statement for each table below an output folder."""
    found = [_PARTITION.fullmatch(table) for table in published(Out(out))]
    return [
        f"ALTER TABLE scores ADD IF NOT EXISTS PARTITION (night = '{night}', run = '{run}') "
        f"LOCATION '{place}/';"
        for place, night, run in (match.groups() for match in found if match)
    ]


if __name__ == "__main__":
    print("\n".join(statements(*sys.argv[1:])))
