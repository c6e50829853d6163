"""Decisions beside current images, and the alarms that stay away."""

from __future__ import annotations

import pytest

from ops.storage.paths import Out
from pipelines.tables import current_scores, decided_images, decisions
from pipelines.tables.verdict_rules import VerdictRule
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
