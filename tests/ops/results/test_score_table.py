import datetime

import pyarrow as pa
import pytest

from ops.failure import STATUSES, Failure
from ops.results import score_table

OK = {
    "image_id": "a",
    "uri": "file:///a.png",
    "product": "nut",
    "content_sha256": "c0",
    "width": 40,
    "height": 30,
    "bit_depth": 8,
    "status": "ok",
    "score": 1.5,
    "peak_x": 39,
    "peak_y": 29,
    "model_id": "m",
    "run_id": "r",
    "run_number": 1,
    "scored_at": datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC),
}
FAILED = OK | {"status": "unreadable", "reason": "the file is empty", "score": None}
FAILED |= {"peak_x": None, "peak_y": None}


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), score_table.SCHEMA)


def test_a_valid_table_has_no_violations():
    failures = [FAILED | {"status": status} for status in STATUSES if status != "ok"]
    assert score_table.violations(table(OK, *failures)) == []
    assert score_table.violations(table()) == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (OK | {"score": None}, "1 ok rows without a finite score"),
        (OK | {"score": float("nan")}, "1 ok rows without a finite score"),
        (OK | {"score": float("inf")}, "1 ok rows without a finite score"),
        (FAILED | {"score": 1.0}, "1 failed rows with score"),
        (FAILED | {"reason": None}, "1 failed rows without reason"),
        (FAILED | {"status": "odd"}, "1 rows of an unknown status"),
        (OK | {"uri": None}, "1 rows whose uri is null"),
        (OK | {"scored_at": None}, "1 rows whose scored_at is null"),
        (OK | {"product": None}, "1 ok rows without product"),
        (OK | {"content_sha256": None}, "1 ok rows without content_sha256"),
        (OK | {"width": None}, "1 ok rows without width"),
        (OK | {"peak_y": None}, "1 ok rows without peak_y"),
        (FAILED | {"p_value": 0.5}, "1 failed rows with p_value"),
        (FAILED | {"is_anomalous": False}, "1 failed rows with is_anomalous"),
        (FAILED | {"map_uri": "file:///a"}, "1 failed rows with map_uri"),
        (OK | {"p_value": 0.0}, "1 rows whose p_value is not in (0, 1]"),
        (OK | {"p_value": 1.1}, "1 rows whose p_value is not in (0, 1]"),
        (OK | {"p_value": float("nan")}, "1 rows whose p_value is not in (0, 1]"),
        (OK | {"peak_x": 40}, "1 rows whose peak lies outside of the picture"),
        (OK | {"peak_y": 30}, "1 rows whose peak lies outside of the picture"),
        (OK | {"peak_x": -1}, "1 rows whose peak lies outside of the picture"),
    ],
)
def test_each_broken_rule_is_named_once(row, words):
    assert score_table.violations(table(OK, row, FAILED)) == [words]


def test_a_status_that_is_null_is_a_violation_even_among_unknown_ones():
    messages = score_table.violations(table(FAILED | {"status": None}, FAILED | {"status": "odd"}))
    assert messages == ["1 rows whose status is null", "1 rows of an unknown status"]


def test_other_columns_are_a_violation():
    (message,) = score_table.violations(table(OK).drop_columns(["peak_x"]))
    assert "not those of the score schema" in message
    index = score_table.SCHEMA.get_field_index("score")
    lossy = table(OK).set_column(index, "score", pa.array([1.5], pa.float32()))
    assert len(score_table.violations(lossy)) == 1


def test_every_column_has_a_description():
    assert all(field.metadata[b"meaning"] for field in score_table.SCHEMA)


@pytest.mark.parametrize("status", ["ok", "odd"])
def test_a_failure_has_a_status_that_is_known(status):
    with pytest.raises(ValueError, match=f"{status!r}"):
        Failure(status, "because")
