"""Print statements for Athena that make published tables partitions of `scores` and `regions`.

PYTHONPATH=. python deploy/sql/add_partitions.py s3://bucket/out

Athena passes over the partitions that it knows.
"""

from __future__ import annotations

import re
import sys

from ops.storage.paths import Out
from pipelines.tables.current_scores import published

_PARTITION = re.compile(r".*/night=([\d-]+)/run=([\w-]+)/[^/]+")


def statements(out: str) -> list[str]:
    """Two statements for each run that published a table below an output folder."""
    found = [_PARTITION.fullmatch(table) for table in published(Out(out))]
    runs = [match.groups() for match in found if match]
    folders = {"scores": Out(out).scores(), "regions": Out(out).regions()}
    return [
        f"ALTER TABLE {table} ADD IF NOT EXISTS PARTITION (night = '{night}', run = '{run}') "
        f"LOCATION '{folder}/night={night}/run={run}/';"
        for table, folder in folders.items()
        for night, run in runs
    ]


if __name__ == "__main__":
    print("\n".join(statements(*sys.argv[1:])))
