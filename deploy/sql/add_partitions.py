"""Print the statements that make every published table a partition of `scores`, known ones too.

PYTHONPATH=. python deploy/sql/add_partitions.py s3://bucket/out athena   # or trino

Athena passes over the partitions that it knows. Trino refuses them: `--after RUN_ID` leaves out
that run and all older ones.
"""

from __future__ import annotations

import argparse
import re

from ops.storage.paths import Out
from pipelines.tables.current_scores import published

_PARTITION = re.compile(r"(.*/night=([\d-]+)/run=([\w-]+))/[^/]+")
STATEMENTS = {
    "athena": "ALTER TABLE scores ADD IF NOT EXISTS PARTITION (night = '{night}', run = '{run}') "
    "LOCATION '{place}/';",
    "trino": "CALL system.register_partition('{schema}', 'scores', ARRAY['night', 'run'], "
    "ARRAY['{night}', '{run}'], '{place}/');",
}


def statements(out: str, dialect: str, schema: str = "default", after: str = "") -> list[str]:
    """A statement for each table below an output folder, the oldest first."""
    found = [_PARTITION.fullmatch(table) for table in published(Out(out))]
    parts = [match.groups() for match in found if match]
    return [
        STATEMENTS[dialect].format(schema=schema, place=place, night=night, run=run)
        for place, night, run in parts
        if run > after
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("dialect", choices=STATEMENTS)
    parser.add_argument("--schema", default="default")
    parser.add_argument("--after", default="")
    print("\n".join(statements(**vars(parser.parse_args()))))
