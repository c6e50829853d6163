"""What decisions say of a model, over drawn nights, and how the report shows it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ops.results.decision_table import DECISIONS, UNDECIDED
from ops.results.proportions import wilson_interval
from ops.storage.paths import Out
from pipelines.reports import decision_summary, report
from pipelines.tables import current_scores, decisions
from tests.drawn_nights import EVIL, NONE, THRESHOLD, Elements, collect
from tests.pipelines.tables.test_current_scores import MODELS, publish, row
from tests.pipelines.tables.test_decisions import decided
from tests.runs import Part, finish, model_of


@pytest.fixture
def out(tmp_path):
    return Out(str(tmp_path / "out"))


def summary(out, night="2026-12-31", most=60):
    with current_scores.opened(out, labels=True) as database:
        return decision_summary.decision_summary(database, MODELS[0], night, "pooled", most)


def test_without_decisions_there_is_nothing_to_say(out):
    publish(out, 0, [row("u/1", score=9.0)])
    assert summary(out) == decision_summary.DecisionSummary()


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_a_plain_loop(out, seed, monkeypatch):
    """Six nights that score images again, of which the last three with decisions count."""
    monkeypatch.setattr(decision_summary, "NIGHTS", 3)
    rng = random.Random(seed)
    current, said = {}, {}
    for day in range(6):
        names = rng.sample(range(200), 50)
        rows = [
            row(
                f"u/{n}",
                product="ab"[n % 2],
                score=rng.choice([1.0, 9.0]),
                content_sha256=f"{n:064}",
            )
            for n in names
        ]
        run_id = publish(out, 20 * day, rows)
        shown = [each | {"run_id": run_id} for each in rows]
        current |= {each["uri"]: each for each in shown}
        made = [
            decided(each, rng.choice([w for w in DECISIONS if w != UNDECIDED]), 60 * day)
            for each in rng.sample(shown, 20 * (day != 2))
        ]
        if made:
            decisions.append(out, made)
        said |= {each["uri"]: each["decision"] for each in made}
    nights = {
        each["run_id"][:10]
        for uri, each in current.items()
        if each["is_anomalous"] and said.get(uri) in {"defect", "false_alarm"}
    }
    assert len(nights) > 3
    counted = sorted(nights)[-3:]
    found = summary(out)
    assert (found.nights, found.first_night) == (3, counted[0])
    for product in "ab":
        of_product = [
            said.get(uri)
            for uri, each in current.items()
            if each["product"] == product
            and each["is_anomalous"]
            and each["run_id"][:10] in counted
        ]
        [shown] = (each for each in found.products if each["product"] == product)
        names = ["defects", "false_alarms", "unsure", "undecided"]
        words = ["defect", "false_alarm", "unsure", None]
        assert [shown[name] for name in names] == [of_product.count(word) for word in words]
        hits, trials = shown["defects"], shown["defects"] + shown["false_alarms"]
        assert shown["precision"] == hits / trials
        assert (shown["low"], shown["high"]) == wilson_interval(hits, trials)
    missed = {
        uri
        for uri, each in current.items()
        if said.get(uri) == "defect" and not each["is_anomalous"]
    }
    assert missed
    assert ({each["uri"] for each in found.misses}, found.missed) == (missed, len(missed))
    few = summary(out, most=1)
    assert (len(few.misses), few.missed) == (1, len(missed))
    earlier = summary(out, "2026-11-19")
    assert (earlier.nights, list(earlier.products), earlier.missed) == (0, [], 0)


@pytest.fixture(scope="module")
def decided_night(tmp_path_factory):
    """A night of 12 images, of which six are anomalous, with decisions on some of each."""
    root = str(tmp_path_factory.mktemp("decided"))
    scores = [3.0, 3.1, 3.2, 3.3, 3.4, 3.5, *[1.0 + i / 100 for i in range(6)]]
    parts = [Part(f"{i}.png", "bolt", s, content=f"c{i}") for i, s in enumerate(scores)]
    run = finish(root, parts, model_of(["bolt"]), settings=NONE)
    out = Out(root)
    with current_scores.opened(out) as database:
        sql = "FROM scores_of($model)"
        shown = database.sql(sql, params={"model": run.model.card.model_id}).to_arrow_table()
    rows = {each["uri"].rsplit("/", 1)[1]: each for each in shown.to_pylist()}
    said = {"0.png": "false_alarm", "1.png": "false_alarm", "2.png": "defect", "3.png": "unsure"}
    made = [decided(rows[name], word) for name, word in (said | {"7.png": "defect"}).items()]
    other = decided(rows["4.png"], "false_alarm") | {"model_id": "f" * 32, "who": EVIL}
    decisions.append(out, [*made, other])
    return out


def text_of(html):
    return " ".join(" ".join(Elements(html).text).split())


def test_false_alarms_are_not_among_the_worst_parts_and_all_counts_stay(decided_night):
    data = collect(decided_night, parts=3, more_parts=100)
    listed = [part.row["uri"].rsplit("/", 1)[1] for part in data.parts]
    assert listed == ["5.png", "4.png", "3.png"]
    assert [row["uri"].rsplit("/", 1)[1] for row in data.flagged] == ["2.png"]
    assert (data.anomalous, data.dismissed, data.unlisted) == (6, 2, 0)
    assert data.statuses == {"ok": 12}
    text = text_of(report.render(decided_night, data).decode())
    assert "2 anomalous images that were called false alarms under this model are left out" in text


def test_decisions_stand_beside_parts_with_precision_and_misses(decided_night):
    data = collect(decided_night)
    html = report.render(decided_night, data).decode()
    text = text_of(html)
    assert "in the night of 2026-11-20." in text
    low, high = (report.percent(each) for each in wilson_interval(1, 4))
    assert f"bolt 1 3 25 % {low} to {high} 1 1" in text
    assert "Missed: 1 image with a defect that the model calls normal" in text
    assert [row["uri"].rsplit("/", 1)[1] for row in data.decisions.misses] == ["7.png"]
    assert "decided: defect, ada" in text
    assert "decided: unsure, ada" in text
    assert "under another model" in text
    assert EVIL not in html
    assert THRESHOLD == 2.0  # what the drawn scores lie around


def test_a_night_without_decisions_has_no_such_section(tmp_path):
    parts = [Part("a.png", "bolt", 3.0), replace(Part("b.png", "bolt", 3.0), content="c1")]
    finish(str(tmp_path), parts, model_of(["bolt"]), settings=NONE)
    out = Out(str(tmp_path))
    assert 'id="decided"' not in report.render(out, collect(out)).decode()
