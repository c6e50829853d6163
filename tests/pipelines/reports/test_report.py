"""The page of drawn nights, without Ray: its words and its size, and that all names are escaped."""

from __future__ import annotations

import numpy as np
import pytest

from ops.archives.fetch import FetchSettings
from ops.storage import files
from pipelines.reports import report
from pipelines.reports.region_counts import ProductRegions, RegionCounts
from pipelines.reports.report_data import ReportSettings
from pipelines.reports.report_queries import BINS, Histogram
from pipelines.tables import run_records
from tests.drawn_nights import HOSTILE, PRODUCTS, Elements, collect, no_progress


def test_regions_of_products_and_parts_are_counted(nights, data):
    worst = data.parts[0].row
    counts = RegionCounts({worst["product"]: ProductRegions(1234, 5)}, {worst["image_id"]: 3}, 17)
    html = report.render(nights[0], data._replace(regions=counts)).decode()
    text = " ".join(" ".join(Elements(html).text).split())
    assert "1,234 in 5 images" in text
    assert text.count("3 regions above the pixel threshold") == 1
    assert "17 regions of maps are left out" in text
    without = report.render(nights[0], data).decode()
    assert data.regions == RegionCounts()
    assert 'data-label="Regions"' not in without
    assert "pixel threshold" not in without


def test_the_share_of_anomalous_images_stands_beside_what_is_promised(nights, data):
    """Two held-out images promise a third, whatever was asked for."""
    assert [data.promised(name) for name in ("bolt", "unknown", None)] == [1 / 3, None, None]
    text = " ".join(" ".join(Elements(report.render(nights[0], data).decode()).text).split())
    for row in data.products:
        share = row["anomalous_b"] / (row["images_b"] - row["failed_b"])
        assert f"{row['anomalous_b']} {share:.0%}".replace("%", " %, promised 33 %") in text
    shown = {1.0: "100 %", 0.1: "10 %", 0.0123: "1.2 %", 0.001: "0.1 %", 0.0: "0 %"}
    assert {share: report.percent(share) for share in shown} == shown


@pytest.fixture(scope="module")
def page(nights, data):
    return Elements(report.render(nights[0], data).decode())


def test_hostile_names_are_text_and_nothing_else(page):
    assert len(page.of("script")) == 1
    assert not page.of("b", "iframe", "object", "form") or page.of("form")[0]["class"] == "filters"
    assert not page.of("b")
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on") or name == "style"], tag
    text = "".join(page.text)
    for name in HOSTILE:
        last = name.rsplit("/", 1)[-1].replace("\u202e", "\\u202e").replace("%", "%25")
        assert last in text
    assert '<b onclick="window.ran=1">\\u2066\\x1b[2J' in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_large_numbers_have_commas_between_thousands(nights, data):
    many = data._replace(statuses={"ok": 1234567, "unreadable": 2223})
    page = Elements(report.render(nights[0], many).decode())
    text = " ".join(" ".join(page.text).split())
    assert "Images 1,236,790" in text
    assert "Failed 2,223" in text
    assert "\\u" not in text.replace("\\u202e", "").replace("\\u2066", "")
    assert [report.count(value) for value in (0, 999, 1000)] == ["0", "999", "1,000"]
    shown = {0: "0", 0.00012345: "0.0001234", 9999.4: "9999", 12345.6: "12,346", -2e6: "-2,000,000"}
    assert {value: report.number(value) for value in shown} == shown
    assert report.number(2223.4, 3) == "2,223"
    assert (report.number(1e15), report.number(float("inf"))) == ("1e+15", "inf")


def test_links_lead_to_the_table_and_the_tracker_alone(nights, page, data):
    out = nights[0]
    run = run_records.latest(out, 1)[0]
    below = f"../scores/night=2026-11-21/run={run['run_id']}/part-00000.parquet"
    assert [attrs["href"] for attrs in page.of("a")] == ["#parts", below]
    for tracker, linked in (
        ("https://tracker:5000/#/experiments/1/runs/2", True),
        ("javascript:window.ran=1", False),
        ("sqlite:////tmp/mlflow.db", False),
    ):
        shown = Elements(report.render(out, data._replace(tracker=tracker)).decode())
        assert (tracker in [attrs["href"] for attrs in shown.of("a")]) == linked
        assert tracker in "".join(shown.text)


def test_nothing_is_loaded_from_anywhere(page):
    assert {attrs["src"].partition(",")[0] for attrs in page.of("img")} == {
        "data:image/jpeg;base64"
    }
    assert [attrs["href"] for attrs in page.of("link")] == ["data:,"]
    assert not any("src" in attrs for attrs in page.of("script"))
    policy = page.of("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_everything_has_a_name_for_those_who_do_not_see_it(page):
    assert all(attrs["alt"] for attrs in page.of("img"))
    assert len(page.of("caption")) == len(page.of("table")) == 4
    assert all(attrs["scope"] in {"row", "col"} for attrs in page.of("th"))
    assert len(page.of("label")) == len(page.of("select", "input")) == 5
    assert len(page.of("title")) == 1 + len(PRODUCTS)  # the page's and one per histogram
    assert len(page.of("h1")) == 1


def test_the_page_is_bounded_in_number_and_size(nights, data):
    out = nights[0]
    small = data.settings
    page = report.render(out, data)
    pictures = Elements(page.decode()).of("img")
    assert len(pictures) <= 3 * 25
    longest = max(len(attrs["src"]) for attrs in pictures)
    assert longest <= small.bytes_each * 4 / 3 + 100
    many = collect(out, parts=1, more_parts=0, thumbnail=32)
    assert len(report.render(out, many)) < len(page) / 3
    rows = [dict(data.products[0], product=f"p{i}") for i in range(1000)]
    html = report.render(out, data._replace(products=rows, histograms={})).decode()
    assert "900 more products with fewer anomalous images are not listed" in html
    assert html.count("no scores") == 100


def test_the_page_is_written_whole_below_the_output_folder(nights):
    out = nights[0]
    runs = run_records.latest(out, 1)
    settings = ReportSettings(parts=3)
    location = report.report(out, runs, "a", settings, FetchSettings(), no_progress)
    assert location == f"{out.root}/reports/a.html"
    assert files.names(f"{out.root}/reports") == ["a.html"]
    html = files.read_bytes(location)
    assert html.startswith(b"<!DOCTYPE html>")
    assert html.rstrip().endswith(b"</html>")
    # The same night gives the same page.
    assert html == report.render(out, collect(out, parts=3))


def test_bars_stand_on_the_ground_and_one_among_millions_is_seen():
    normal, anomalous, before = (np.zeros(BINS, np.int64) for _ in range(3))
    normal[4], normal[5], anomalous[5], anomalous[40], before[3] = 4_000_000, 500_000, 500_000, 1, 9
    drawing = report.draw_histogram(Histogram(0.0, 4.8, normal, anomalous, before), 2.4)
    bars = {
        (bar.x, kind): bar for kind in ("normal", "anomalous") for bar in getattr(drawing, kind)
    }
    assert set(bars) == {(32, "normal"), (40, "normal"), (40, "anomalous"), (320, "anomalous")}
    tall, part, rest = bars[32, "normal"], bars[40, "anomalous"], bars[40, "normal"]
    assert part.height + rest.height == pytest.approx(tall.height / 2)
    assert part.height == pytest.approx(rest.height)
    assert part.y + part.height == pytest.approx(rest.y)
    assert rest.y + rest.height == tall.y + tall.height == pytest.approx(72)
    assert bars[320, "anomalous"].height == 2
    assert drawing.threshold == 192
    high = [point for point in drawing.before.split() if not point.endswith(",72")]
    assert high == ["24,2", "32,2"]
    nothing_before = Histogram(0.0, 4.8, normal, anomalous, before * 0)
    assert report.draw_histogram(nothing_before, 9.0)[2:] == ("", None)
