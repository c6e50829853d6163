"""Parts of several views: worst view, what failed or is missing, and p-values."""

from __future__ import annotations

import re

import duckdb
import pyarrow as pa
import pytest

from ops.archives.inventory import SCHEMA as INVENTORY
from ops.archives.inventory import image_id
from ops.errors import SettingError
from ops.results import part_table
from ops.results.part_calibration import PartCalibration
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.tables import current_parts, current_scores
from pipelines.tables.current_parts import PartRules
from tests.conftest import ROOT
from tests.pipelines.tables.test_current_scores import MODELS, publish, row

#: Four held-out parts of three views.
BOLT = PartCalibration(
    ("back", "side", "top"), ((1.0, 1.0, 2.0), (1.0, 3.0, 1.0), (4.0, 1.0, 1.0), (5.0, 2.0, 3.0))
)


def image(part, view, score=1.0, p_value=0.5, **more):
    if more.get("status", "ok") == "ok":
        more |= {"p_value": p_value}
    return row(f"u/{part}/{view}", part=part, view=view, score=score, **more)


@pytest.fixture
def out(tmp_path):
    out = Out(str(tmp_path / "out"))
    views = ("back", "side", "top")
    rows = [image("good", view) for view in views]
    rows += [
        image("bad", view, score, 1 / score) for view, score in zip(views, (1, 9, 5), strict=True)
    ]
    rows += [image("blind", "side", 2.0), image("blind", "top", status="unreadable")]
    rows += [image("dark", "top", status="unreadable")]
    rows += [row("u/none", part=None, view="other", score=99.0)]
    rows += [row("u/nut/7", product="nut", part="7", score=3.0, p_value=0.25)]
    publish(out, 0, rows)
    files.write_json(out.part_calibrations(MODELS[0]), {"bolt": BOLT.to_json()})
    return out


def query(out, rate=0.2, others=(), **parameters):
    with current_scores.opened(out, "1GB", *others) as database:
        rules = PartRules(current_parts.calibrations(out, MODELS[0]), {"bolt": rate, "nut": rate})
        found = current_parts.query(database, MODELS[0], rules, **parameters)
        return pa.Table.from_batches(found, part_table.SCHEMA).to_pylist()


def test_each_part_has_one_row_with_its_worst_view_and_what_it_lacks(out):
    rows = {r["part"]: r for r in query(out)}
    names = ("worst_view", "score", "p_value", "is_anomalous", "images")
    counts = ("views_scored", "views_failed", "views_missing", "failed_views", "missing_views")
    assert {part: tuple(r[name] for name in (*names, *counts)) for part, r in rows.items()} == {
        "good": ("back", 1.0, 1.0, False, 3, 3, 0, 0, None, None),
        "bad": ("side", 9.0, 0.2, True, 3, 3, 0, 0, None, None),
        # Of the side alone: 2 is as high as that of 2 of 4 held-out parts.
        "blind": ("side", 2.0, 0.6, False, 2, 1, 1, 1, "top", "back"),
        "dark": (None, None, None, None, 1, 0, 1, 2, "top", "back, side"),
        "7": (None, 3.0, None, None, 1, 1, 0, 0, None, None),
    }
    assert rows["bad"]["uri"] == "u/bad/side"
    assert rows["bad"]["image_id"] == image_id("u/bad/side", "1")
    assert rows["bad"]["image_p_value"] == 1 / 9
    assert {r["model_id"] for r in rows.values()} == {MODELS[0]}


def test_the_most_anomalous_part_comes_first_and_what_has_no_score_last(out):
    assert [r["part"] for r in query(out)] == ["bad", "blind", "good", "7", "dark"]
    assert [r["part"] for r in query(out, limit=2)] == ["bad", "blind"]


def test_a_rate_below_what_the_held_out_parts_promise_is_raised_to_it(out):
    found = {r["part"]: r["is_anomalous"] for r in query(out, rate=0.001)}
    assert found == {"good": False, "bad": True, "blind": False, "dark": None, "7": None}


def test_parts_are_chosen_by_product_condition_and_inventory(out, tmp_path):
    assert [r["part"] for r in query(out, product="nut")] == ["7"]
    incomplete = query(out, where="views_missing + views_failed > 0")
    assert [r["part"] for r in incomplete] == ["blind", "dark"]
    with pytest.raises(SettingError, match="'width' is no column"):
        query(out, where="width > 1")
    with pytest.raises(SettingError, match="is not a condition"):
        query(out, where="part > now()")
    listed = str(tmp_path / "listed.parquet")
    ids = [{"image_id": image_id("u/bad/top", "1")}, {"image_id": image_id("u/good/side", "1")}]
    parquet.write(listed, INVENTORY, [pa.Table.from_pylist(ids, INVENTORY)])
    rows = {r["part"]: r for r in query(out, others=(listed,), only=listed)}
    assert {part: r["missing_views"] for part, r in rows.items()} == {
        "bad": "back, side",
        "good": "back, top",
    }


def test_a_view_that_no_held_out_part_has_leaves_a_part_without_a_p_value(out):
    publish(out, 1, [image("bad", "front", 2.0)])
    rows = {r["part"]: r for r in query(out)}
    assert (rows["bad"]["p_value"], rows["bad"]["worst_view"]) == (None, "side")
    assert rows["good"]["missing_views"] == "front"


def test_without_calibrations_the_lowest_p_value_of_an_image_is_the_worst(out):
    files.remove_folder(f"{out.root}/parts")
    rows = {r["part"]: r for r in query(out)}
    assert (rows["bad"]["worst_view"], rows["bad"]["p_value"]) == ("side", None)


@pytest.mark.parametrize("engine", ["duckdb", "athena", "trino"])
def test_the_views_in_sql_count_the_same(out, engine):
    names = ["part", "images", "score", "image_p_value"]
    names += ["views_scored", "views_failed", "views_missing"]
    asked = f"SELECT {', '.join(names)} FROM"
    if engine == "duckdb":
        with current_scores.opened(out) as database:
            found = database.execute(f"{asked} current_parts($m)", {"m": MODELS[0]}).fetchall()
    else:
        text = (ROOT / "deploy" / "sql" / f"{engine}.sql").read_text()
        code = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
        with duckdb.connect() as database:
            tables = current_scores.published(out)
            database.read_parquet(tables, hive_partitioning=True).create_view("scores")
            for statement in code.split(";"):
                if "VIEW" in statement and not re.search("regions|decisions", statement):
                    database.execute(statement)
            found = database.execute(f"{asked} current_parts").fetchall()
    ours = [tuple(r[name] for name in names) for r in query(out)]
    assert sorted(found, key=str) == sorted(ours, key=str)
