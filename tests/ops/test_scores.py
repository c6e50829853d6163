import datetime

import pyarrow as pa
import pytest

from ops import scores
from ops.failure import STATUSES, Failure

OK = {
    "image_id": "a",
    "uri": "file:///a.png",
    "product": "nut",
    "status": "ok",
    "score": 1.5,
    "model_id": "m",
    "run_id": "r",
    "scored_at": datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC),
}
FAILED = OK | {"status": "unreadable", "reason": "the file is empty", "score": None}


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), scores.SCHEMA)


def test_a_sound_table_has_no_violations():
    failures = [FAILED | {"status": status} for status in STATUSES if status != "ok"]
    assert scores.violations(table(OK, *failures)) == []
    assert scores.violations(table()) == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (OK | {"score": None}, "1 ok rows without a finite score"),
        (OK | {"score": float("nan")}, "1 ok rows without a finite score"),
        (OK | {"score": float("inf")}, "1 ok rows without a finite score"),
        (FAILED | {"score": 1.0}, "1 failed rows with a score"),
        (FAILED | {"reason": None}, "1 failed rows without a reason"),
        (FAILED | {"status": "odd"}, "unknown statuses ['odd']"),
        (OK | {"uri": None}, "uri is null in 1 rows"),
        (OK | {"scored_at": None}, "scored_at is null in 1 rows"),
    ],
)
def test_each_broken_rule_is_named_once(row, words):
    assert scores.violations(table(OK, row, FAILED)) == [words]


def test_a_status_that_is_null_is_a_violation_even_among_unknown_ones():
    found = scores.violations(table(OK | {"status": None}, FAILED | {"status": "odd"}))
    assert "status is null in 1 rows" in found


def test_other_columns_are_a_violation():
    (found,) = scores.violations(table(OK).drop_columns(["peak_x"]))
    assert "not those of the score schema" in found
    index = scores.SCHEMA.get_field_index("score")
    lossy = table(OK).set_column(index, "score", pa.array([1.5], pa.float32()))
    assert len(scores.violations(lossy)) == 1


def test_every_column_says_what_it_means():
    assert all(field.metadata[b"meaning"] for field in scores.SCHEMA)


@pytest.mark.parametrize("status", ["ok", "odd"])
def test_a_failure_has_a_status_that_is_known(status):
    with pytest.raises(ValueError, match="a failure is one of"):
        Failure(status, "because")
