"""Finished runs to be checked, drawn without Ray, of which one may be damaged."""

from __future__ import annotations

import contextlib
import shutil

import pyarrow as pa

from ops.results.score_table import SCHEMA
from ops.storage import files, parquet, uris
from pipelines.scoring.run import ScoreSettings
from tests.runs import Part, finish, model_of

NIGHT = "2026-11-20"
PARTS = [
    *(Part(f"bolt{i}.png", "bolt", 1.5 + i / 10) for i in range(12)),
    *(Part(f"nut{i}.png", "nut", 1.75 + i / 10) for i in range(5)),
    Part("broken.png", "nut", None),
]
POLICIES = ("none", "flagged", "all", "top:4")


class Damage:
    """A run to be damaged."""

    def __init__(self, run):
        self.run, self.out = run, run.out
        self.table = run.out.table(run.night, run.run_id)
        self.card = run.model.card

    def rows(self):
        return parquet.read(self.table)

    def write(self, rows, schema=SCHEMA):
        parquet.write(self.table, schema, [rows])

    def change(self, place, **values):
        rows = self.rows().to_pylist()
        rows[place] |= values
        self.write(pa.Table.from_pylist(rows, SCHEMA))

    def record(self, **totals):
        record = files.read_json(self.out.run(self.run.run_id))
        record["totals"] |= totals
        files.write_json(self.out.run(self.run.run_id), record)

    def map(self):
        """Where the last bolt's map lies, whose score is above the threshold."""
        return uris.parse(self.rows()["map_uri"][11].as_py()).location


def finished(folder, policy):
    """A finished run under a policy of maps."""
    settings = ScoreSettings(policy, False, 10)
    return finish(str(folder), PARTS, model_of(["bolt", "nut"]), NIGHT, settings)


@contextlib.contextmanager
def to_damage(run, kept):
    """A run to be damaged; what it was is copied to a folder, and comes back afterwards."""
    shutil.copytree(run.out.root, kept)
    yield Damage(run)
    shutil.rmtree(run.out.root)
    shutil.copytree(kept, run.out.root)
