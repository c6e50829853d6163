"""Rules of the table of decisions."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from ops.results import decision_table

ROW = {
    "image_id": "a",
    "uri": "file:///a.png",
    "product": "nut",
    "content_sha256": "c0",
    "region": None,
    "decision": "defect",
    "who": "ada",
    "decided_at": datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC),
    "source": "page",
    "comment": None,
    "model_id": "m",
    "run_id": "r",
}


def violations(*rows: dict) -> list[str]:
    return decision_table.violations(pa.Table.from_pylist(list(rows), decision_table.SCHEMA))


def test_every_decision_and_source_is_valid():
    rows = [ROW | {"decision": name} for name in decision_table.DECISIONS]
    rows += [ROW | {"source": name, "region": 1} for name in decision_table.SOURCES]
    assert violations(*rows) == []


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"decision": "Defect"}, "1 rows of an unknown decision"),
        ({"source": "mail"}, "1 rows of an unknown source"),
        ({"region": 0}, "1 rows whose region is below 1"),
        ({"decided_at": None}, "1 rows whose decided_at is null"),
        ({"uri": None}, "1 rows whose uri is null"),
    ],
)
def test_a_broken_rule_is_named_with_the_number_of_rows(changed, rule):
    assert violations(ROW, ROW | changed) == [rule]


def test_other_columns_are_a_violation():
    table = pa.Table.from_pylist([ROW], decision_table.SCHEMA).drop_columns(["who"])
    assert len(decision_table.violations(table)) == 1
