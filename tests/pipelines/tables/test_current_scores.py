"""Current scores over many nights, against a plain loop over random histories."""

from __future__ import annotations

import datetime
import random
import re

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from ops.archives.inventory import image_id
from ops.errors import UserError
from ops.results import score_table
from ops.results.calibration import Calibration
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.tables import current_scores
from pipelines.tables.verdict_rules import VerdictRule
from tests.conftest import ROOT

MODELS = ("a" * 32, "b" * 32)
START = datetime.datetime(2026, 11, 20, 1, tzinfo=datetime.UTC)


#: Further columns of a scored image.
SCORED = {"content_sha256": "0" * 64, "width": 64, "height": 64, "bit_depth": 8}
SCORED |= {"peak_x": 1, "peak_y": 2}


def row(uri, version="1", status="ok", model=MODELS[0], product="bolt", score=1.0, **more):
    ok = status == "ok"
    return (
        {
            "image_id": image_id(uri, version),
            "uri": uri,
            "product": product,
            "status": status,
            "reason": None if ok else "for a reason",
            "score": score if ok else None,
            "p_value": 0.5 if ok else None,
            "is_anomalous": score > 5 if ok else None,
            "model_id": model,
        }
        | (SCORED if ok else {})
        | more
    )


def publish(out: Out, number: int, rows: list[dict], clock: int | None = None) -> str:
    """A run's table; runs come an hour after each other, or `clock` hours after the first."""
    run_id = f"2026-11-{20 + number // 20:02d}-{number:04d}"
    at = START + datetime.timedelta(hours=number if clock is None else clock)
    full = [
        r
        | {"run_id": run_id, "run_number": number + 1}
        | {"scored_at": at + datetime.timedelta(milliseconds=i)}
        for i, r in enumerate(rows)
    ]
    table = pa.Table.from_pylist(full, score_table.SCHEMA)
    assert score_table.violations(table) == []
    parquet.write(out.table(run_id[:10], run_id), score_table.SCHEMA, [table])
    return run_id


@pytest.fixture
def out(tmp_path):
    return Out(str(tmp_path / "out"))


def current(out, model=MODELS[0], **parameters):
    rows = current_scores.current(out, model, **parameters).to_pylist()
    assert len({r["image_id"] for r in rows}) == len(rows)
    return {r["uri"]: r for r in rows}


def test_without_any_night_nothing_is_current_and_the_schema_stands(out):
    result = current_scores.current(out, MODELS[0])
    assert len(result) == 0
    assert result.schema.equals(score_table.SCHEMA)


def test_of_one_version_an_ok_row_beats_a_newer_failure_and_the_newest_ok_row_wins(out):
    publish(out, 0, [row("u/1", score=1.0), row("u/2", status="missing")])
    publish(out, 1, [row("u/1", score=2.0), row("u/2", score=3.0)])
    last = publish(out, 2, [row("u/1", status="unavailable"), row("u/2", status="missing")])
    result = current(out)
    assert {uri: r["score"] for uri, r in result.items()} == {"u/1": 2.0, "u/2": 3.0}
    assert last not in {r["run_id"] for r in result.values()}


def test_a_failure_that_judged_the_bytes_replaces_the_score_of_the_same_version(out):
    """The bytes are other ones, though the version is the same; or the version is gone."""
    publish(out, 0, [row(f"u/{i}") for i in range(4)])
    failures = ["unreadable", "changed", "undefined", "unavailable"]
    publish(out, 1, [row(f"u/{i}", status=status) for i, status in enumerate(failures)])
    statuses = [current(out)[f"u/{i}"]["status"] for i in range(4)]
    assert statuses == ["unreadable", "changed", "undefined", "ok"]
    publish(out, 2, [row("u/0", status="missing")])
    assert current(out)["u/0"]["status"] == "missing"


def test_a_replaced_version_is_not_current_even_if_its_successor_failed(out):
    publish(out, 0, [row("u/1"), row("u/2")])
    publish(out, 1, [row("u/1", "2", status="unreadable"), row("u/2", "2", score=9.0)])
    result = current(out)
    assert result["u/1"]["status"] == "unreadable"
    assert result["u/2"]["score"] == 9.0
    publish(out, 2, [row("u/1", "1", score=4.0)])  # and the old file was put back
    assert current(out)["u/1"]["score"] == 4.0


def test_two_members_of_one_name_are_both_current(out):
    publish(out, 0, [row("u.tar#x", "@512", score=1.0), row("u.tar#x", "@1024", score=2.0)])
    result = current_scores.current(out, MODELS[0]).to_pylist()
    assert sorted(r["score"] for r in result) == [1.0, 2.0]


def test_an_image_that_changed_its_product_is_current_as_the_new_one(out):
    publish(out, 0, [row("u/1", product="bolt")])
    publish(out, 1, [row("u/1", product="nut", status="unknown_product")])
    assert current(out)["u/1"]["product"] == "nut"


def test_each_model_has_its_own_current_scores(out):
    publish(out, 0, [row("u/1", score=1.0), row("u/2", score=1.0)])
    publish(out, 1, [row("u/1", score=7.0, model=MODELS[1])])
    assert {u: r["score"] for u, r in current(out).items()} == {"u/1": 1.0, "u/2": 1.0}
    assert {u: r["score"] for u, r in current(out, MODELS[1]).items()} == {"u/1": 7.0}


def random_history(out, seed):
    """A random history, and what a plain loop over it calls current: (model, image) -> run."""
    rng = random.Random(seed)
    versions: dict[str, int] = {}
    published: list[dict] = []
    for number in range(12):
        model = rng.choice(MODELS)
        rows = []
        for i in rng.sample(range(12), 7):
            uri = f"u/{i}"
            versions[uri] = versions.get(uri, 1) + (rng.random() < 0.3)
            status = rng.choice(["ok", "ok", "missing", "unreadable"])
            rows.append(row(uri, str(versions[uri]), status, model, score=rng.random()))
        run_id = publish(out, number, rows, rng.randint(-9000, 9000))  # clocks say nothing
        published += [r | {"run_id": run_id} for r in rows]
    expected = {}
    for r in published:  # in their order
        at = (r["model_id"], r["uri"])
        old = expected.get(at)
        same = old is not None and old["image_id"] == r["image_id"]
        if not (same and old["status"] == "ok" and r["status"] == "missing"):
            expected[at] = r
    return {(r["model_id"], r["image_id"]): r["run_id"] for r in expected.values()}


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_agree_with_a_plain_loop(out, seed):
    expected = random_history(out, seed)
    result = {
        (model, r["image_id"]): r["run_id"]
        for model in MODELS
        for r in current_scores.current(out, model).to_pylist()
    }
    assert result == expected


@pytest.mark.parametrize("engine", ["athena", "trino"])
def test_the_view_for_an_engine_finds_the_same_rows_and_declares_the_same_columns(out, engine):
    """Its query is standard SQL that DuckDB understands too."""
    random_history(out, 7)
    text = (ROOT / "deploy" / "sql" / f"{engine}.sql").read_text()
    code = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    create, _, view = (part.strip() for part in code.split(";")[:3])
    columns = create.split("(", 1)[1].split("\n)")[0].replace("\n", " ")
    outside_of_brackets = re.split(r",(?![^(<]*[)>])", columns)
    declared = [tuple(column.strip().split(" ", 1)) for column in outside_of_brackets]
    kinds = {
        "string": "string",
        "bigint": "int64",
        "int": "int32",
        "tinyint": "int8",
        "double": "double",
    }
    kinds |= {"varchar": "string", "integer": "int32"}
    kinds |= dict.fromkeys(["timestamp", "timestamp(3)"], "timestamp[ms, tz=UTC]")
    kinds |= {"boolean": "bool"}
    kinds |= dict.fromkeys(["map<string,string>", "map(varchar, varchar)"], "map<string, string>")
    if engine == "trino":  # which wants the partitions among the columns, at their end
        assert declared[-2:] == [("night", "varchar"), ("run", "varchar")]
        declared = declared[:-2]
    assert [(name, kinds[kind]) for name, kind in declared] == [
        (field.name, str(field.type)) for field in score_table.SCHEMA
    ]
    with duckdb.connect() as database:
        files = current_scores.published(out)
        database.read_parquet(files, hive_partitioning=True).create_view("scores")
        database.execute(view)
        for model in MODELS:
            theirs = database.sql(
                "SELECT * FROM current_scores WHERE model_id = $m", params={"m": model}
            ).to_arrow_table()
            assert theirs.schema.names == [*score_table.SCHEMA.names, "night"]
            nights = {str(night) for night in theirs["night"].to_pylist()}
            assert nights == {run[:10] for run in theirs["run_id"].to_pylist()}
            theirs = theirs.drop_columns("night")
            ours = current_scores.current(out, model)
            assert (
                theirs.cast(score_table.SCHEMA).sort_by("image_id").equals(ours.sort_by("image_id"))
            )


def test_the_macros_read_what_a_glob_names_as_their_head_says(out):
    random_history(out, 8)
    with duckdb.connect() as database:
        database.execute(f"SET VARIABLE tables = '{out.scores()}/*/*/part-*.parquet'")
        database.execute(current_scores.MACROS.read_text())
        result = database.sql(f"FROM current_scores('{MODELS[0]}')").to_arrow_table()
    assert set(result["image_id"].to_pylist()) == set(
        current_scores.current(out, MODELS[0])["image_id"].to_pylist()
    )


def query(out, **parameters):
    with current_scores.opened(out) as database:
        return pa.Table.from_batches(
            current_scores.query(database, MODELS[0], **parameters), current_scores.VIEW
        ).to_pylist()


@pytest.mark.parametrize("held_out", [1, 4, 9, 10])
def test_another_false_alarm_rate_gives_the_labels_that_the_model_would_have_given(out, held_out):
    rng = np.random.default_rng(held_out)
    calibration = Calibration.of(rng.normal(size=held_out).tolist())
    values = np.concatenate([rng.normal(size=30), calibration.scores])
    p_values = calibration.p_values(values)
    rows = [
        row(f"u/{i}", score=float(s), p_value=float(p))
        for i, (s, p) in enumerate(zip(values, p_values, strict=True))
    ]
    publish(out, 0, [*rows, row("u/bad", status="missing")])
    with current_scores.opened(out) as database:
        for rate in (0.01, 0.1, 0.2, 0.25, 0.3, 0.5, 0.9):
            rules = {"bolt": VerdictRule.at_rate(rate, held_out)}
            result = list(current_scores.query(database, MODELS[0], rules=rules))
            threshold = calibration.threshold(rate)
            for r in pa.Table.from_batches(result).to_pylist():
                expected = None if r["score"] is None else r["score"] > threshold
                assert r["is_anomalous"] is expected, (rate, r)


def test_a_threshold_changes_the_labels_of_its_product_alone(out):
    publish(out, 0, [row("u/1", score=2.0), row("u/2", score=2.0, product="nut")])
    result = query(out, rules={"bolt": VerdictRule(threshold=1.5)})
    assert {r["product"]: r["is_anomalous"] for r in result} == {"bolt": True, "nut": False}
    # Conditions see the new labels.
    (only,) = query(out, rules={"bolt": VerdictRule(threshold=1.5)}, where="is_anomalous")
    assert only["product"] == "bolt"


def worst(number, product, scores, p_value, **more):
    return [
        row(f"{product}/{number}/{i}", product=product, score=s, p_value=p_value, **more)
        for i, s in enumerate(scores)
    ]


def test_the_order_is_call_then_p_value_then_turns_of_products_and_failures_are_last(out):
    """Scores of nuts are a hundred times those of bolts; no order of products follows from that."""
    flagged = {"is_anomalous": True}
    rows = [
        *worst(0, "nut", (900.0, 800.0, 700.0), 0.01, **flagged),
        *worst(0, "bolt", (9.0, 8.0, 7.0), 0.01, **flagged),
        *worst(1, "bolt", (99.0,), 0.5, is_anomalous=False),
        *worst(1, "nut", (1.0,), 0.001, is_anomalous=False),
        *worst(2, "nut", (5000.0,), 0.02, **flagged),
        *worst(2, "cap", (1e6,), None, is_anomalous=None),
        row("u/failed", status="unreadable"),
    ]
    publish(out, 0, rows)
    expected = [
        *("bolt/0/0", "nut/0/0", "bolt/0/1", "nut/0/1", "bolt/0/2", "nut/0/2", "nut/2/0"),
        *("nut/1/0", "bolt/1/0", "cap/2/0", "u/failed"),
    ]
    assert [r["uri"] for r in query(out)] == expected
    for limit in (1, 4, 11):
        assert [r["uri"] for r in query(out, limit=limit)] == expected[:limit]
    # The verdicts of the rules are those that count.
    nuts = query(out, rules={"nut": VerdictRule(p_value=0.005)}, limit=4)
    assert [r["uri"] for r in nuts] == ["nut/1/0", "bolt/0/0", "bolt/0/1", "bolt/0/2"]


def test_flagged_images_with_the_smallest_p_value_of_their_product_come_in_turn(out):
    """A p-value of 0.1 says as much of a product with 9 held-out images as 0.01 of one with 99."""
    flagged = {"is_anomalous": True}
    rows = [
        *worst(0, "bolt", (9.0, 8.0), 0.01, **flagged),
        *worst(1, "bolt", (5.0,), 0.02, **flagged),
        *worst(0, "nut", (90.0, 80.0), 0.1, **flagged),
        *worst(1, "nut", (70.0,), 0.2, **flagged),
        *worst(2, "nut", (60.0,), 0.1, is_anomalous=False),
        *worst(2, "bolt", (1.0,), 0.03, is_anomalous=False),
    ]
    publish(out, 0, rows)
    found = [r["uri"] for r in query(out, held_out={"bolt": 99, "nut": 9})]
    assert found == [
        *("bolt/0/0", "nut/0/0", "bolt/0/1", "nut/0/1", "bolt/1/0", "nut/1/0"),
        *("bolt/2/0", "nut/2/0"),
    ]
    # Of a nut with more held-out images, smaller p-values were possible.
    found = [r["uri"] for r in query(out, held_out={"bolt": 99, "nut": 19})][:4]
    assert found == ["bolt/0/0", "bolt/0/1", "bolt/1/0", "nut/0/0"]


def test_with_separate_views_each_has_a_smallest_p_value_of_its_own(out):
    flagged = {"is_anomalous": True, "part": "1"}
    rows = [
        *worst(0, "bolt", (9.0, 8.0), 0.01, view="top", **flagged),
        *worst(1, "bolt", (7.0,), 0.1, view="side", **flagged),
    ]
    publish(out, 0, rows)
    held_out = {"bolt/top": 99, "bolt/side": 9}
    found = [r["uri"] for r in query(out, held_out=held_out, views="separate")]
    assert found == ["bolt/1/0", "bolt/0/0", "bolt/0/1"]
    found = [r["uri"] for r in query(out, held_out={"bolt": 99})]
    assert found == ["bolt/0/0", "bolt/0/1", "bolt/1/0"]


def test_what_the_last_night_scored_comes_first_among_images_of_the_same_call(out):
    def night(number, scores):
        publish(out, number, worst(number, "bolt", scores, 0.1, is_anomalous=True))

    night(0, (9.0, 1.0))
    publish(out, 20, worst(5, "bolt", (50.0,), 0.001, is_anomalous=False))  # a day later
    night(21, (8.0, 2.0))  # the same day
    publish(out, 22, [row("u/1", model=MODELS[1])])
    new_first = [(r["uri"], r["is_new"]) for r in query(out)]
    assert new_first == [
        *(("bolt/21/0", True), ("bolt/21/1", True), ("bolt/0/0", False), ("bolt/0/1", False)),
        ("bolt/5/0", True),
    ]
    by_score = [r["uri"] for r in query(out, new_first=False)]
    assert by_score == ["bolt/0/0", "bolt/21/0", "bolt/21/1", "bolt/0/1", "bolt/5/0"]
    assert [r["uri"] for r in query(out, where="NOT is_new")] == ["bolt/0/0", "bolt/0/1"]


def test_a_condition_that_is_none_is_quoted(out):
    publish(out, 0, [row("u/1")])
    with current_scores.opened(out) as database:
        for where in ("scre > 1", "score >", "uri = 3 AND", "product::INT = 1"):
            with pytest.raises(UserError, match="is not a condition over the score table"):
                list(current_scores.query(database, MODELS[0], where=where))
