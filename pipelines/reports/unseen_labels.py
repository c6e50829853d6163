"""Labels of an inventory, without those of images that one of the compared models was made of.

Verdicts on such images say nothing about new ones. Known are: images of splits train and
validation, false alarms that a model was grown by, and, where the model folder lies in the output
folder, the images that calibrated the model and those with vectors in its bank.
"""

from __future__ import annotations

from collections.abc import Iterator

import duckdb

from ops.archives.layouts import OF_MODELS
from ops.storage import files
from ops.storage.paths import CALIBRATED_BY, ORIGINS, Out
from pipelines.reports.sides import Sides
from pipelines.tables.database import load

_COLUMNS = ("image_id", "uri", "label", "split")
_NONE = "CREATE TABLE labels (image_id VARCHAR, uri VARCHAR, label TINYINT, split VARCHAR)"
_GROWN_BY = """
    CREATE TABLE made_of AS SELECT DISTINCT uri FROM sides
    WHERE image_id IN (SELECT unnest($ids::VARCHAR[]))
"""
_FORGET = """
    UPDATE labels SET label = NULL
    WHERE split IN (SELECT unnest($splits)) OR uri IN (SELECT uri FROM made_of)
"""


def create(database: duckdb.DuckDBPyConnection, sides: Sides, location: str) -> None:
    """Create the table `labels` of all images of an inventory; without rows if none is given.

    `database` has the tables of `sides.Sides.read`. Images that a model was made of have no label,
    nor have others at their addresses.
    """
    if not location:
        database.execute(_NONE)
        return
    load(database, "labels", location, _COLUMNS)
    ids = [name for side in sides for name in side.record.get("grown_by", ())]
    database.execute(_GROWN_BY, {"ids": ids})
    for model_id in {side.model_id for side in sides}:
        for table in _tables_of(sides.out, model_id):
            load(database, "of_model", table, ["uri"])
            database.execute("INSERT INTO made_of SELECT DISTINCT uri FROM of_model")
            database.execute("DROP TABLE of_model")
    database.execute(_FORGET, {"splits": list(OF_MODELS)})


def _tables_of(out: Out, model_id: str) -> Iterator[str]:
    """Tables in a model folder, and in those of its members, whose images the model was made of."""
    folder = out.model(model_id)
    for name in files.names(folder):
        if name.rpartition("/")[2] in {CALIBRATED_BY, ORIGINS}:
            yield files.join(folder, name)
