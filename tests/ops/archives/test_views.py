"""Names of detectors: the same in rows, columns and SQL."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from ops.archives.views import (
    check_names,
    detector_name,
    detector_names,
    detector_sql,
    product_of,
)
from ops.errors import UserError

ROWS = [
    {"product": "bolt", "view": "top"},
    {"product": "bolt", "view": None},
    {"product": "nut", "view": "t\u00f6p #1"},
]
NAMES = {
    "pooled": ["bolt", "bolt", "nut"],
    "separate": ["bolt/top", "bolt", "nut/t\u00f6p #1"],
}


@pytest.mark.parametrize("views", ["pooled", "separate"])
def test_rows_columns_and_sql_name_the_same_detector(views):
    rows = pa.Table.from_pylist(ROWS)
    assert [detector_name(row, views) for row in ROWS] == NAMES[views]
    assert detector_names(rows, views).to_pylist() == NAMES[views]
    with duckdb.connect() as database:
        database.register("rows", rows)
        for table in ("", "rows"):
            found = database.sql(f"SELECT {detector_sql(views, table)} FROM rows").fetchall()
            assert [name for (name,) in found] == NAMES[views]
    assert [product_of(name, views) for name in NAMES[views]] == ["bolt", "bolt", "nut"]


def test_rows_without_a_product_or_a_column_of_views():
    unknown = pa.table({"product": pa.array([None], pa.string()), "view": ["top"]})
    assert detector_names(unknown, "separate").to_pylist() == [None]
    assert detector_name({"product": "bolt"}, "separate") == "bolt"
    assert product_of("a/b", "pooled") == "a/b"


def test_names_that_could_not_be_told_apart_are_refused():
    check_names(["bolt", None, "top"])
    with pytest.raises(UserError, match="'a/b' holds a slash"):
        check_names(["bolt", "a/b"])
