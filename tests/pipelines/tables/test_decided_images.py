"""Decisions beside current images, and the alarms that stay away."""

from __future__ import annotations

import random
import re

import duckdb
import pyarrow as pa
import pytest

from ops.results.decision_table import DECISIONS
from ops.storage.paths import Out
from pipelines.tables import current_scores, decided_images, decisions
from pipelines.tables.verdict_rules import VerdictRule
from tests.conftest import ROOT
from tests.pipelines.tables.test_current_scores import MODELS, publish, row
from tests.pipelines.tables.test_decisions import NOON, decided


@pytest.fixture
def out(tmp_path):
    return Out(str(tmp_path / "out"))


def flagged(uri, score=9.0, **more):
    return row(uri, score=score, p_value=0.01, **more)


def night(out, number, rows):
    """A published run; returns its rows as a person is shown them."""
    run_id = publish(out, number, rows)
    return [each | {"run_id": run_id} for each in rows]


def listed(out, model=MODELS[0], **parameters):
    """Decisions by address in the list of a morning, and the number of rows left out."""
    parameters = {"false_alarms": False} | parameters
    with current_scores.opened(out, "1GB", labels=True) as database:
        batches = current_scores.query(database, model, **parameters)
        rows = [each for batch in batches for each in batch.to_pylist()]
        return {r["uri"]: r["decided"] for r in rows}, decided_images.dismissed(database)


def test_rows_have_the_decision_of_their_bytes(out):
    first, second, third = night(out, 0, [flagged(f"u/{n}") for n in range(3)])
    decisions.append(out, [decided(first, "defect"), decided(second, "unsure", 1)])
    decisions.append(out, [decided(third, "defect", 2, region=1)])
    assert listed(out) == ({"u/0": "defect", "u/1": "unsure", "u/2": "defect"}, 0)
    with current_scores.opened(out, labels=True) as database:
        [batch] = current_scores.query(database, MODELS[0], where="uri = 'u/0'")
    [kept] = batch.to_pylist()
    assert [kept[name] for name in decided_images.COLUMNS.names] == [
        *("defect", "ada", NOON, MODELS[0])
    ]
    with current_scores.opened(out) as database:  # nobody asked for labels
        [batch] = current_scores.query(database, MODELS[0])
    assert batch["decided"].to_pylist() == [None] * 3


def test_a_false_alarm_stays_away_while_its_bytes_and_the_model_stay(out):
    [shown, _] = night(out, 0, [flagged("u/0"), flagged("u/1")])
    decisions.append(out, [decided(shown, "false_alarm")])
    assert listed(out) == ({"u/1": None}, 1)
    night(out, 1, [flagged("u/0", version="2")])  # rewritten with the same bytes
    assert listed(out) == ({"u/1": None}, 1)
    night(out, 2, [flagged("u/0", version="3", content_sha256="1" * 64)])
    assert listed(out) == ({"u/0": None, "u/1": None}, 0)


def test_another_model_raises_it_again_until_it_is_decided_there(out):
    [shown] = night(out, 0, [flagged("u/0")])
    decisions.append(out, [decided(shown, "false_alarm")])
    [again] = night(out, 1, [flagged("u/0", model=MODELS[1])])
    assert listed(out) == ({}, 1)
    assert listed(out, MODELS[1]) == ({"u/0": "false_alarm"}, 0)
    decisions.append(out, [decided(again, "false_alarm", 1)])
    assert listed(out, MODELS[1]) == ({}, 1)


def test_only_false_alarms_of_whole_images_that_are_called_anomalous_stay_away(out):
    rows = [flagged("u/defect"), flagged("u/unsure"), flagged("u/region"), flagged("u/taken")]
    *shown, normal = night(out, 0, [*rows, row("u/normal", score=1.0)])
    defect, unsure, region, taken = shown
    decisions.append(out, [decided(defect, "defect"), decided(unsure, "unsure")])
    decisions.append(out, [decided(region, "false_alarm", region=1)])
    decisions.append(out, [decided(taken, "false_alarm"), decided(taken, "undecided", 1)])
    decisions.append(out, [decided(normal, "false_alarm")])
    rows, dismissed = listed(out)
    assert rows == {
        "u/defect": "defect",
        "u/unsure": "unsure",
        "u/region": None,
        "u/taken": None,
        "u/normal": "false_alarm",
    }
    assert dismissed == 0
    rows, dismissed = listed(out, rules={"bolt": VerdictRule(threshold=0.5)})
    assert (sorted(rows), dismissed) == (["u/defect", "u/region", "u/taken", "u/unsure"], 1)


def test_what_is_left_out_is_counted_among_what_was_asked_for(out):
    shown = night(out, 0, [flagged("u/0"), flagged("u/1", product="nut"), flagged("u/2")])
    decisions.append(out, [decided(each, "false_alarm") for each in shown])
    assert listed(out) == ({}, 3)
    assert listed(out, product="nut") == ({}, 1)
    assert listed(out, where="uri > 'u/1'", limit=1) == ({}, 1)
    assert listed(out, false_alarms=True)[1] == 0


def test_a_condition_over_decisions_shows_what_it_asks_for(out):
    [shown, _] = night(out, 0, [flagged("u/0"), flagged("u/1")])
    decisions.append(out, [decided(shown, "false_alarm")])
    assert listed(out, where="Decided = 'false_alarm'") == ({"u/0": "false_alarm"}, 0)
    assert listed(out, where="decided_model_id is null") == ({"u/1": None}, 0)


def random_decisions(out, seed):
    """Nights of images with equal and changed bytes, and decisions on them, some at one time."""
    rng = random.Random(seed)
    for number in range(4):
        versions = {f"u/{n}": rng.choice("123") for n in range(12)}
        model = MODELS[number % 2]
        rows = [
            flagged(uri, version=version, model=model, content_sha256=rng.choice("ab") * 64)
            if rng.random() < 0.8
            else row(uri, version, "unreadable", model, content_sha256=None)
            for uri, version in versions.items()
        ]
        shown = night(out, number, rows)
        words = [*DECISIONS]
        made = [
            decided(
                rng.choice(shown), rng.choice(words), rng.randrange(5), region=rng.choice([None, 1])
            )
            for _ in range(30)
        ]
        decisions.append(out, made)


@pytest.mark.parametrize("engine", ["athena", "trino"])
@pytest.mark.parametrize("seed", range(2))
def test_the_views_for_engines_have_the_same_decisions_and_the_same_rows(out, engine, seed):
    random_decisions(out, seed)
    text = (ROOT / "deploy" / "sql" / f"{engine}.sql").read_text()
    code = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    names = ["image_id", "run_id", *decided_images.COLUMNS.names]
    with duckdb.connect() as database:
        database.execute("SET TimeZone = 'UTC'")
        for name, places in (
            ("scores", current_scores.published(out)),
            ("labels", decisions.published(out)),
        ):
            database.read_parquet(places, hive_partitioning=True).create_view(name)
        for statement in code.split(";"):
            if "VIEW" in statement and not re.search("regions|parts", statement):
                database.execute(statement)
        for name in ("current_decisions", "image_decisions"):
            order = "ORDER BY decided_at, uri, region NULLS FIRST, model_id, content_sha256"
            theirs = database.sql(f"FROM {name} {order}").to_arrow_table().to_pylist()
            with decisions.opened(out) as ours:
                assert theirs == ours.sql(f"FROM {name}() {order}").to_arrow_table().to_pylist()
            assert len(theirs) > 5
        for model in MODELS:
            sql = f"SELECT {', '.join(names)} FROM decided_scores{{}} ORDER BY image_id"
            where = f" WHERE model_id = '{model}'"
            theirs = database.sql(sql.format(where)).to_arrow_table().to_pylist()
            with current_scores.opened(out, labels=True) as ours:
                macro = ours.sql(sql.format(f"('{model}')")).to_arrow_table().to_pylist()
                rows = list(current_scores.query(ours, model))
            assert theirs == macro
            found = pa.Table.from_batches(rows, current_scores.VIEW).sort_by("image_id")
            assert found.select(names).to_pylist() == macro
            assert any(each["decided"] for each in macro)
