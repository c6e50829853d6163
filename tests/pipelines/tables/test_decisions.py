"""Decisions: appended as a whole, the last one wins, bound to the bytes that were shown."""

from __future__ import annotations

import datetime
import random

import pyarrow as pa
import pytest

from ops.errors import UserError
from ops.results import decision_table
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.tables import decisions
from tests.pipelines.tables.test_current_scores import MODELS, row

NOON = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)


def shown(uri="u/1", **more):
    """A row of a score table whose image a person sees."""
    return row(uri, **more) | {"run_id": "2026-11-20-0000"}


def decided(score, decision, second=0, **more):
    at = NOON + datetime.timedelta(seconds=second)
    return decisions.decided(score, decision, who="ada", source="page", at=at, **more)


def current(out, macro="current_decisions"):
    rows = decisions.current(out, macro).to_pylist()
    return {(each["uri"], each["region"]): each["decision"] for each in rows}


@pytest.fixture
def out(tmp_path):
    return Out(str(tmp_path / "out"))


def test_without_any_decision_there_is_none(out):
    assert current(out) == {}
    assert current(out, "image_decisions") == {}


def test_the_last_decision_wins_whatever_the_order_of_files(out):
    history = [decided(shown(), word, second) for second, word in enumerate(["unsure", "defect"])]
    other = decided(shown("u/2"), "false_alarm", comment="a hair")
    decisions.append(out, [history[1], other])
    decisions.append(out, [history[0]])
    assert len(decisions.published(out)) == 2
    assert current(out) == {("u/1", None): "defect", ("u/2", None): "false_alarm"}
    [kept] = (each for each in decisions.current(out).to_pylist() if each["uri"] == "u/2")
    assert kept == other


def test_undecided_takes_a_decision_back_and_a_later_one_stands(out):
    decisions.append(out, [decided(shown(), "defect")])
    decisions.append(out, [decided(shown(), "undecided", 1)])
    assert current(out) == {}
    decisions.append(out, [decided(shown(), "false_alarm", 2)])
    assert current(out) == {("u/1", None): "false_alarm"}


def test_decisions_of_the_same_time_have_one_order(out):
    words = ["unsure", "false_alarm", "defect"]
    random.Random(1).shuffle(words)
    for word in words:
        decisions.append(out, [decided(shown(), word)])
    assert current(out) == {("u/1", None): "defect"}


def test_a_decision_stays_with_the_bytes_and_not_with_the_version(out):
    """An archive that was rewritten with the same bytes has the same decision, and no second."""
    decisions.append(out, [decided(shown(version="1"), "defect")])
    decisions.append(out, [decided(shown(version="2"), "false_alarm", 1)])
    assert current(out) == {("u/1", None): "false_alarm"}
    changed = shown(version="3", content_sha256="1" * 64)
    decisions.append(out, [decided(changed, "defect", 2)])
    assert sorted(decisions.current(out)["decision"].to_pylist()) == ["defect", "false_alarm"]


def test_regions_are_decided_on_their_own_by_model(out):
    regions = [decided(shown(), "defect", region=1), decided(shown(), "false_alarm", region=2)]
    decisions.append(out, regions)
    other = decided(shown(model=MODELS[1]), "false_alarm", 1, region=1)
    decisions.append(out, [other])
    rows = decisions.current(out).to_pylist()
    assert [(r["model_id"][0], r["region"], r["decision"]) for r in rows] == [
        ("a", 1, "defect"),
        ("a", 2, "false_alarm"),
        ("b", 1, "false_alarm"),
    ]


def test_a_defect_in_a_region_makes_its_image_one_unless_the_image_is_decided_later(out):
    decisions.append(out, [decided(shown(), "false_alarm", 0)])
    decisions.append(out, [decided(shown(), "defect", 1, region=2)])
    decisions.append(out, [decided(shown("u/2"), "false_alarm", 1, region=1)])
    assert current(out, "image_decisions") == {("u/1", 2): "defect"}
    decisions.append(out, [decided(shown(), "false_alarm", 2)])
    assert current(out, "image_decisions") == {("u/1", None): "false_alarm"}


def test_a_broken_row_publishes_nothing(out):
    with pytest.raises(ValueError, match="1 rows of an unknown decision"):
        decisions.append(out, [decided(shown(), "defect"), decided(shown("u/2"), "bad")])
    with pytest.raises(ValueError, match="no rows"):
        decisions.append(out, [])
    assert decisions.published(out) == []


def test_other_files_in_the_folder_are_left_alone(out):
    location = decisions.append(out, [decided(shown(), "defect")])
    files.write_bytes(files.join(out.labels(), "notes.txt"), b"x")
    files.write_bytes(files.join(out.labels(), "._part-1.parquet"), b"x")
    assert decisions.published(out) == [location]
    assert current(out) == {("u/1", None): "defect"}


def as_text(out, location):
    files.write_bytes(location, b"no table")


def of_other_columns(out, location):
    table = pa.table({"uri": ["u/1"], "decision": ["defect"]})
    parquet.write(location, table.schema, [table])


def of_another_word(out, location):
    rows = [decided(shown(), "bad")]
    table = pa.Table.from_pylist(rows, decision_table.SCHEMA)
    parquet.write(location, decision_table.SCHEMA, [table])


@pytest.mark.parametrize("damage", [as_text, of_other_columns, of_another_word])
@pytest.mark.parametrize("place", ["1", "9"])
def test_a_table_that_is_none_is_named(out, damage, place):
    """Whether other tables come before or after it."""
    decisions.append(out, [decided(shown(), "defect")])
    location = out.label_table(place)
    damage(out, location)
    with pytest.raises(UserError, match=r"is no valid table of decisions .* move it away") as error:
        decisions.read([location])
    with pytest.raises(UserError) as told:
        current(out)
    assert str(told.value) == str(error.value)


def test_on_s3(s3):
    out = Out(f"{s3}/out")
    assert current(out) == {}
    decisions.append(out, [decided(shown(), "unsure")])
    decisions.append(out, [decided(shown(), "defect", 1)])
    assert [len(files.read_bytes(each)) > 0 for each in decisions.published(out)] == [True, True]
    assert current(out) == {("u/1", None): "defect"}
