"""Summaries of runs and the page over all nights, of generated nights without Ray."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from ops.errors import SettingError, UserError
from ops.plain_text import printable
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.reports import drift, run_summary, trend_data, trend_drawing, trends
from pipelines.reports.trend_data import Decided, TrendSettings
from pipelines.scoring.run import ScoreSettings
from pipelines.tables import decisions, run_records
from tests.runs import Part, finish, model_of

EVIL = '<b onclick="window.ran=1">\u202e\x1b[2J'
PRODUCTS = ("bolt", "nut", EVIL)
NONE = ScoreSettings("none", False, 100)
THRESHOLD = 2.0  # of the generated model


def parts_of(night, products=PRODUCTS):
    """Images of a night, some of which failed."""
    rng = np.random.default_rng(night)
    return [
        Part(
            f"{night}/{number}/{i}.png",
            product,
            None if i % 10 == 3 else float(rng.normal(1.9, 0.4)),
        )
        for number, product in enumerate(products)
        for i in range(23 + night + number)
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four nights, the last two under another model; the second has drift; decisions of two."""
    out = Out(str(tmp_path_factory.mktemp("out")))
    models = [model_of(PRODUCTS), model_of(PRODUCTS, seed=1)]
    nights = [parts_of(n, PRODUCTS if n < 3 else PRODUCTS[:2]) for n in range(4)]
    runs = [finish(out.root, nights[n], models[n // 2], f"2026-11-2{n}", NONE) for n in range(4)]
    rows = drift.drift_of_run(out, runs[1].run_id, runs[1].model.card.model_id)
    parquet.write(out.drift(runs[1].run_id), drift.DRIFT, [rows])
    files.write_bytes(out.report(runs[3].run_id), b"a report")
    for number, decision, flagged in (
        (0, "defect", True),
        (0, "defect", True),
        (0, "false_alarm", True),
        (0, "unsure", True),
        (0, "defect", False),
        (2, "false_alarm", True),
    ):
        decide(out, runs[number], decision, flagged)
    return out, runs, nights, trend_data.collect(out, TrendSettings())


def decide(out, run, decision, flagged):
    """Decide about a bolt about which nobody has decided."""
    done = set(decisions.current(out)["image_id"].to_pylist())
    table = parquet.read(out.table(run.night, run.run_id)).to_pylist()
    row = next(
        row
        for row in table
        if (row["product"], row["is_anomalous"]) == ("bolt", flagged)
        and row["image_id"] not in done
    )
    decisions.append(out, [decisions.decided(row, decision, who="ann", source="page")])


def scores(parts, product):
    return [part.score for part in parts if part.product == product and part.score is not None]


def test_counts_are_exact_and_quantiles_are_those_of_numpy(world):
    out, runs, nights, _ = world
    for run, parts in zip(runs, nights, strict=True):
        rows = parquet.read(out.run_summary(run.run_id))
        assert rows.schema.equals(run_summary.SUMMARY)
        by_product = {row["product"]: row for row in rows.to_pylist()}
        assert set(by_product) == {part.product for part in parts}
        for product, row in by_product.items():
            known = scores(parts, product)
            count = sum(part.product == product for part in parts)
            assert (row["images"], row["failed"]) == (count, count - len(known))
            assert row["anomalous"] == sum(score > THRESHOLD for score in known)
            found = [row[name] for name in ("q10", "q25", "median", "q75", "q90")]
            np.testing.assert_allclose(found, np.quantile(known, [0.1, 0.25, 0.5, 0.75, 0.9]))
            assert row["threshold"] == THRESHOLD
            assert row["promised"] == 1 / 3
            assert (row["run_id"], row["night"]) == (run.run_id, run.night)


def test_drift_is_that_on_record(world):
    out, runs, _, data = world
    table = parquet.read(out.drift(runs[1].run_id)).to_pylist()
    for recorded in table:
        row = data.series[recorded["product"]][runs[1].run_id]
        assert (row["psi"], row["ks_q"]) == (recorded["psi"], recorded["ks_q"])
        assert row["psi"] > 0
    assert data.series["bolt"][runs[0].run_id]["psi"] is None


def test_the_runs_are_the_last_ones_in_order(world):
    out, runs, nights, data = world
    assert [run.run_id for run in data.runs] == [run.run_id for run in runs]
    assert [run.images for run in data.runs] == list(map(len, nights))
    assert [run.has_report for run in data.runs] == [False, False, False, True]
    few = trend_data.collect(out, TrendSettings(nights=2, products=1))
    assert [run.run_id for run in few.runs] == [run.run_id for run in runs[2:]]
    assert (few.earlier, few.products, list(few.series)) == (2, 3, list(data.series)[:1])
    assert [change.place for change in trend_drawing.model_changes(data.runs)] == [2]


def test_products_of_the_last_night_come_first_and_sums_are_over_all_nights(world):
    _, _, nights, data = world
    assert [row["product"] for row in data.overview][2] == EVIL  # not of the last night
    for row in data.overview:
        of_product = [sum(p.product == row["product"] for p in parts) for parts in nights]
        assert row["all_images"] == sum(of_product)
        assert row["images"] == next(filter(None, reversed(of_product)))
        assert row["runs"] == sum(map(bool, of_product))


def test_decisions_are_counted_by_night_and_precision_is_of_anomalous_images(world):
    _, runs, _, data = world
    first = data.decided["bolt", runs[0].run_id]
    assert first == Decided(3, 1, 1, flagged_defect=2, flagged_false_alarm=1)
    assert first.precision == 2 / 3
    last = data.decided["bolt", runs[2].run_id]
    assert last == Decided(false_alarm=1, flagged_false_alarm=1)
    assert last.precision == 0
    assert len(data.decided) == 2
    assert Decided(unsure=3).precision is None


def test_what_jobs_expire_removed_stays_in_its_summary(tmp_path):
    out, model = Out(str(tmp_path)), model_of(["bolt"])
    for n in range(3):
        finish(out.root, parts_of(n, ["bolt"]), model, f"2026-11-2{n}", NONE)
    records = run_records.latest(out, 3)
    assert run_summary.complete(out, records[:1]) == []
    for record in records[:2]:
        expired = {"at": "2026-12-01", "rows": 0}
        files.write_json(out.run(record["run_id"]), {**record, "expired": expired})
        os.remove(out.table(record["night"], record["run_id"]))
    data = trend_data.collect(out, TrendSettings())
    assert set(data.series["bolt"]) == {records[0]["run_id"], records[2]["run_id"]}
    assert data.without == [records[1]["run_id"]]
    page = trends.render(data).decode()
    assert "1 of these runs have no figures by product" in page


class Page(HTMLParser):
    """Tags, texts, and the cells of each table."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.tables, self.in_cell = [], "", [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"th", "td"}:
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell &= tag not in {"th", "td"}

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def test_every_chart_has_a_table_with_its_values(world):
    _, runs, nights, data = world
    page = Page(trends.render(data).decode())
    overall, *of_products = page.tables
    assert [row[0] for row in overall[1:]] == [run.night for run in runs[::-1]]
    assert len(of_products) == 3
    names = [row["product"] for row in data.overview]
    bolt = of_products[names.index("bolt")]
    assert bolt[0][:6] == ["Night", "Model", "Images", "Failed", "Anomalous", "Share"]
    first = dict(zip(bolt[0], bolt[-1], strict=True))
    known = scores(nights[0], "bolt")
    assert (first["Night"], first["Images"]) == ("2026-11-20", "23")
    assert first["Median"] == f"{np.median(known):.4g}"
    assert first["90 %"] == f"{np.quantile(known, 0.9):.4g}"
    assert [first[n] for n in ("Defects", "False alarms", "Unsure")] == ["3", "1", "1"]
    assert first["Precision"] == "67 %"
    kinds = [tag for tag, _ in page.tags]
    assert kinds.count("caption") == kinds.count("table") == kinds.count("details") == 4
    headers = [attrs for tag, attrs in page.tags if tag == "th"]
    assert {attrs.get("scope") for attrs in headers} == {"col", "row"}
    titles = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(titles) == kinds.count("figure") > 10


def test_names_are_escaped_and_the_page_loads_nothing(world):
    html = trends.render(world[3]).decode()
    page = Page(html)
    assert EVIL not in html
    assert "\u202e" not in html
    assert page.text.count('<b onclick="window.ran=1">\\u202e\\x1b[2J') >= 3
    assert not {tag for tag, _ in page.tags} & {"script", "b onclick", "img", "iframe", "object"}
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    run_id = world[1][3].run_id
    assert set(links) == {"#products", "index.html", f"{run_id}.html"}
    assert "style=" not in html


def test_products_without_charts_are_rows(world):
    out = world[0]
    html = trends.render(trend_data.collect(out, TrendSettings(products=1))).decode()
    page = Page(html)
    assert html.count("<article") == 1
    assert "These 2 products have no charts" in page.text
    first, *rest = [row["product"] for row in world[3].overview]
    assert [row[0] for row in page.tables[-1][1:]] == [rest[0], printable(rest[1])]
    assert printable(first) not in [row[0] for row in page.tables[-1]]


def test_no_night_and_one_night_have_a_page(tmp_path):
    out = Out(str(tmp_path))
    trends.write(out, TrendSettings())
    assert b"No night has finished yet." in files.read_bytes(out.trends())
    finish(out.root, [Part("a.png", "bolt", None)], model_of(["bolt"]), "2026-11-20", NONE)
    trends.write(out, TrendSettings())
    page = Page(files.read_bytes(out.trends()).decode())
    assert page.tables[1][1][2:8] == ["1", "1", "0", "\N{EN DASH}", "33 %", "\N{EN DASH}"]
    assert "1 night, 2026-11-20 to 2026-11-20" in " ".join(page.text.split())


def test_paths_are_columns_with_gaps_and_break_where_the_model_changes():
    assert trend_drawing.steps([1, 2, None, 3]) == "M0 1H1V2H2M3 3H4"
    assert trend_drawing.steps([1, 2, 2.25], ["a", "a", "b"]) == "M0 1H1V2H2M2 2.2H3"
    assert trend_drawing.area([9, 8, None], [1, 2, None]) == "M0 1H1V2H2V8H1V9H0Z"
    assert trend_drawing.steps([None]) == trend_drawing.area([], []) == ""


def test_each_model_has_a_scale_of_its_own(world):
    """The curves of a model whose scores are a hundred times larger are the same."""
    _, runs, _, data = world
    rows = dict(data.series["bolt"])
    before = trend_drawing.scores_chart(data.runs, rows, str)
    names = (*run_summary.QUANTILES, "threshold")
    for run in runs[2:]:
        row = rows[run.run_id]
        rows[run.run_id] = row | {name: 100 * row[name] for name in names}
    after = trend_drawing.scores_chart(data.runs, rows, str)
    assert after.shapes == before.shapes
    heights = [float(y) for y in re.findall(r"V([\d.]+)", before.shapes[0].path)]
    assert min(heights) >= 14
    assert max(heights) <= 96


def test_shares_are_drawn_to_their_scale():
    chart = trend_drawing.share_chart(
        "Anomalous", "anomalous", [0.5, None, 0.0], str, [0.25] * 3, ["a"] * 3
    )
    assert chart.shapes[0].path == "M0 4H1V96H0ZM2 96H3V96H2Z"
    assert chart.shapes[1].path == "M0 50H1V50H2V50H3"
    nothing = trend_drawing.share_chart("Failed", "failed", [0.0], str)
    assert (nothing.summary, nothing.shapes[0].path) == ("0 to 0.0", "M0 96H1V96H0Z")


@pytest.mark.parametrize("setting", [{"nights": 0}, {"nights": 1001}, {"products": 201}])
def test_settings_have_bounds(setting):
    with pytest.raises(SettingError, match="must lie between"):
        TrendSettings(**setting)


def test_a_damaged_summary_is_named(tmp_path):
    out = Out(str(tmp_path))
    finish(out.root, parts_of(0), model_of(PRODUCTS), "2026-11-20", NONE)
    expected = trend_data.collect(out, TrendSettings())
    place = out.run_summary(expected.runs[0].run_id)
    kept, data = parquet.read(place), files.read_bytes(place)
    texts = kept.set_column(6, "images", pa.array(["x"] * len(kept)))
    others = (kept.select(["images"]), kept.select(kept.schema.names[::-1]), texts)
    for damaged in (b"no table", b"", data[: len(data) // 2], *others):
        if isinstance(damaged, bytes):
            files.write_bytes(place, damaged)
        else:
            parquet.write(place, damaged.schema, [damaged])
        with pytest.raises(UserError, match=f"^{re.escape(place)} is no valid summary of a run"):
            trend_data.collect(out, TrendSettings())
    files.remove_file(place)
    assert trend_data.collect(out, TrendSettings()) == expected


def test_images_of_no_product_have_charts_of_their_own(tmp_path):
    out = Out(str(tmp_path))
    finish(out.root, parts_of(0, ["bolt"]), model_of(["bolt"]), "2026-11-20", NONE)
    (record,) = run_records.latest(out, 1)
    rows = parquet.read(out.table(record["night"], record["run_id"]))
    nameless = rows.set_column(
        rows.schema.get_field_index("product"),
        rows.schema.field("product"),
        pa.nulls(len(rows), pa.string()),
    )
    parquet.write(out.table(record["night"], record["run_id"]), rows.schema, [nameless])
    data = trend_data.collect(out, replace(TrendSettings(), products=1))
    assert list(data.series) == [None]
    assert data.series[None][record["run_id"]]["images"] == 23
    assert "<i>none</i>" in trends.render(data).decode()


def test_alarms_and_drift_of_the_last_night_come_first(tmp_path):
    """Summaries are drawn: a nut left its past, and the scores of a product drifted."""
    out, rng = Out(str(tmp_path)), np.random.default_rng(0)
    for number in range(1, 11):
        night = f"2026-11-{10 + number}"
        record = {"run_id": f"r{number}", "night": night, "number": number, "started": "x"}
        record |= {"model_id": "m" * 32, "method": "patchcore"}
        record["totals"] = {"images": 300, "failed": 0, "anomalous": 30}
        files.write_json(out.run(f"r{number}"), record)
        rows = []
        for product in ("bolt", "nut", EVIL):
            median = rng.normal(1, 0.02) + (number == 10 and product == "nut")
            quantiles = np.quantile(rng.normal(median, 0.3, 100), [0.1, 0.25, 0.5, 0.75, 0.9])
            row = dict(zip(run_summary.QUANTILES, quantiles, strict=True))
            row |= {"product": product, "images": 100, "failed": 0, "anomalous": 10}
            row |= {"run_id": f"r{number}", "run_number": number, "night": night, "model": "m"}
            row |= {"model_id": "m" * 32, "threshold": 2.0, "promised": 0.1}
            row |= {"psi": 0.2 + 0.1 * (product == EVIL), "ks_q": 0.001}
            rows.append(row)
        table = pa.Table.from_pylist(rows, run_summary.SUMMARY)
        parquet.write(out.run_summary(f"r{number}"), run_summary.SUMMARY, [table])
    data = trend_data.collect(out, TrendSettings(products=2))
    assert [alarm.product for alarm in data.alarms] == ["nut"]
    assert [row["product"] for row in data.drifted] == [EVIL]
    assert set(data.series) == {"nut", EVIL}
    html = trends.render(data).decode()
    text = " ".join(Page(html).text.split())
    assert "in 9 earlier nights (q = " in text
    assert f"{printable(EVIL)}: scores drifted from all earlier nights, PSI 0.3 (q = 0.001)" in text
    anchors = re.findall(r'<li><a href="#(p\d)"', html)
    assert set(anchors) == {"p1", "p2"}
    assert all(f'id="{anchor}"' in html for anchor in anchors)
