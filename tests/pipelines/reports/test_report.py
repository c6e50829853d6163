"""The report of generated nights, without Ray: its numbers, and that all names are escaped."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA, image_id
from ops.archives.listing import entries
from ops.errors import UserError
from ops.images.decode import DecodeSettings
from ops.images.resize import InputSettings, geometry
from ops.results import map_png
from ops.results.anomaly_map import Scale
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.reports import report, report_data
from pipelines.reports.part_pictures import PartPictures
from pipelines.reports.region_counts import ProductRegions, RegionCounts
from pipelines.reports.report_data import ReportSettings
from pipelines.reports.report_queries import BINS, Histogram
from pipelines.scoring.run import ScoreSettings
from pipelines.tables import run_records
from tests import tiffs
from tests.runs import Part, finish, model_of

HOSTILE = (
    "<script>window.ran=1</script>",
    '"><img src=x onerror=window.ran=1>.png',
    "' onmouseover='window.ran=1.png",
    "\u202egnp.exe",
    "javascript:window.ran=1",
    "..%3Cscript%3Ewindow.ran=1",
    "{{ 7 * 7 }}{% raw %}.png",
    "</title><svg onload=window.ran=1>.png",
)
EVIL = '<b onclick="window.ran=1">\u2066\x1b[2J'
PRODUCTS = ("bolt", "nut", EVIL)
NONE = ScoreSettings("none", False, 100)
FLAGGED = ScoreSettings("flagged", False, 100)
THRESHOLD = 2.0  # of the generated model


def no_progress(*_):
    """Reports no progress."""


def pictured(root, part):
    """A part with a picture where its row says, and the hash of it."""
    path = f"{part.folder}/{part.name}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pixels = np.random.default_rng(len(part.name)).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return replace(part, content=hashlib.sha256(open(path, "rb").read()).hexdigest())


def first_night(root):
    """Scores around 1.6; every third name is hostile; two of each product could not be read."""
    rng = np.random.default_rng(0)
    parts = []
    for number, product in enumerate(PRODUCTS):
        for i in range(40):
            name = f"{number}/{i}/{HOSTILE[i % len(HOSTILE)] if i % 3 == 0 else 'plain.png'}"
            score = None if i in {3, 5} else float(rng.normal(1.6, 0.4))
            part = Part(name, product, score, folder=f"{root}/parts", reason=f"{HOSTILE[0]} {i}")
            parts.append(pictured(root, part))
    return parts


def second_night(parts):
    """Noise; bolts drift."""
    rng = np.random.default_rng(1)
    return [
        replace(p, version="v2", score=p.score + float(rng.normal(0, 0.2)) + (p.product == "bolt"))
        if p.score is not None
        else replace(p, version="v2")
        for p in parts
    ]


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Two nights and their parts."""
    root = str(tmp_path_factory.mktemp("out"))
    model, before = model_of(PRODUCTS), first_night(root)
    after = second_night(before)
    finish(root, before, model, "2026-11-20", FLAGGED)
    finish(root, after, model, "2026-11-21", FLAGGED)
    return Out(root), before, after


def collect(out, runs=None, **settings):
    chosen = ReportSettings(**settings)
    return report_data.collect(
        out, runs or run_records.latest(out, 1), chosen, FetchSettings(), no_progress
    )


@pytest.fixture(scope="module")
def data(nights):
    return collect(nights[0], parts=25, thumbnail=64)


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


def test_totals_are_those_of_the_table(nights, data):
    _, _, after = nights
    assert data.statuses == {"ok": 114, "unreadable": 6}
    assert (data.images, data.failures) == (120, 6)
    assert data.anomalous == sum(p.score is not None and p.score > THRESHOLD for p in after)


def test_histograms_hold_every_score_once(nights, data):
    _, before, after = nights
    for product in PRODUCTS:
        histogram = data.histograms[product]
        for parts, counts in (
            (after, histogram.normal + histogram.anomalous),
            (before, histogram.before),
        ):
            scores = [p.score for p in parts if p.product == product and p.score is not None]
            assert counts.sum() == len(scores)
            if parts is after:
                assert histogram.low <= np.median(scores) <= histogram.high
        high = [p.score > THRESHOLD for p in after if p.product == product and p.score is not None]
        assert histogram.anomalous.sum() == sum(high)
        # Bins lie in order: what is anomalous is above the threshold.
        edge = (THRESHOLD - histogram.low) / (histogram.high - histogram.low) * BINS
        assert not histogram.anomalous[: int(max(edge, 0))].any()
        assert not histogram.normal[int(max(edge, 0)) + 1 :].any()


def test_one_huge_score_leaves_the_histogram_readable(tmp_path):
    rng = np.random.default_rng(0)
    parts = [Part(f"{i}.png", "bolt", float(rng.normal(1.5, 0.1))) for i in range(500)]
    finish(str(tmp_path), [*parts, Part("x.png", "bolt", 1e9)], model_of(["bolt"]), settings=NONE)
    histogram = collect(Out(str(tmp_path)), parts=0).histograms["bolt"]
    assert histogram.high < 3
    assert (histogram.normal > 0).sum() > 10
    assert histogram.anomalous[-1] == 1


def test_the_worst_of_each_product_come_in_turn_and_all_that_are_anomalous_are_listed(nights, data):
    """All p-values above the threshold are equal, so the products take turns."""
    _, _, after = nights
    high = [p for p in after if (p.score or 0) > THRESHOLD]
    turns = []
    for product in PRODUCTS:
        scores = sorted((p.score for p in high if p.product == product), reverse=True)
        turns += [(turn, product, score) for turn, score in enumerate(scores)]
    expected = [(product, score) for _, product, score in sorted(turns)]
    assert len(expected) > 30
    shown = [(part.row["product"], part.row["score"]) for part in data.parts]
    assert shown == expected[:25]
    rest = [(row["product"], row["score"]) for row in data.flagged]
    assert rest == expected[25:]
    assert data.unlisted == 0
    html = report.render(nights[0], data).decode()
    assert f"then {len(rest)} more anomalous images without pictures" in html
    assert all(image in html for image in (f'data-value="{score}"' for _, score in expected))
    few = collect(nights[0], parts=25, more_parts=3)
    assert [(row["product"], row["score"]) for row in few.flagged] == expected[25:28]
    assert few.unlisted == len(expected) - 28
    assert (
        f"{few.unlisted} anomalous images are not listed" in report.render(nights[0], few).decode()
    )


def test_the_share_of_anomalous_images_stands_beside_what_is_promised(nights, data):
    """Two held-out images promise a third, whatever was asked for."""
    assert [data.promised(name) for name in ("bolt", "unknown", None)] == [1 / 3, None, None]
    text = " ".join(" ".join(Elements(report.render(nights[0], data).decode()).text).split())
    for row in data.products:
        share = row["anomalous_b"] / (row["images_b"] - row["failed_b"])
        assert f"{row['anomalous_b']} {share:.0%}".replace("%", " %, promised 33 %") in text
    shown = {1.0: "100 %", 0.1: "10 %", 0.0123: "1.2 %", 0.001: "0.1 %", 0.0: "0 %"}
    assert {share: report.percent(share) for share in shown} == shown


def test_failures_of_every_kind_are_named_within_the_bound(nights, data):
    assert [row["status"] for row in data.failed] == ["unreadable"] * 6
    assert len(collect(nights[0], parts=2).failed) == 2


def test_changed_verdicts_are_those_of_the_same_addresses(nights, data):
    _, before, after = nights
    crossed = {"up": set(), "down": set()}
    for was, now in zip(before, after, strict=True):
        if was.score is not None and (was.score > THRESHOLD) != (now.score > THRESHOLD):
            crossed["up" if now.score > THRESHOLD else "down"].add(now.uri)
    verdicts = collect(nights[0], parts=1000).changed_verdicts
    assert verdicts.compared == 114
    assert verdicts.became_anomalous == len(crossed["up"]) > 0
    assert verdicts.became_normal == len(crossed["down"]) > 0
    assert {r["uri"] for r in verdicts.rows if r["is_anomalous"]} == crossed["up"]
    assert {r["uri"] for r in verdicts.rows if not r["is_anomalous"]} == crossed["down"]
    assert len(data.changed_verdicts.rows) == 25
    assert data.changed_verdicts[:3] == verdicts[:3]


def test_only_what_drifted_drifts(data):
    drift = {row["product"]: row for row in data.products}
    assert drift["bolt"]["psi"] > 0.25
    assert drift["bolt"]["ks_q"] < 0.01 < drift["nut"]["ks_q"]


def test_an_earlier_night_is_not_compared_with_later_ones(nights):
    out = nights[0]
    first = collect(out, run_records.latest(out, 2)[:1], parts=5)
    assert not first.has_earlier
    assert first.changed_verdicts == (0, 0, 0, [])
    assert {row["ks"] for row in first.products} == {None}
    assert b"There is no earlier night" in report.render(out, first)


def test_runs_of_one_night_are_one_and_the_last_word_counts(tmp_path):
    model, out = model_of(["bolt"]), Out(str(tmp_path))
    parts = [Part(f"{i}.png", "bolt", 1.0 + i / 10) for i in range(10)]
    changed = [replace(parts[0], version="v2", score=9.0), Part("new.png", "bolt", 1.2)]
    first = finish(str(tmp_path), parts, model, settings=NONE)
    second = finish(str(tmp_path), changed, model, settings=NONE)
    other = finish(str(tmp_path), parts, model_of(["bolt"], seed=1), settings=NONE)
    for number, run in ((1, other), (2, first), (3, second)):
        record = files.read_json(out.run(run.run_id))
        record["number"] = number
        files.write_json(out.run(run.run_id), record)
    runs = run_records.of_night(out, "2026-11-20")
    assert [run["run_id"] for run in runs] == [first.run_id, second.run_id]
    night = collect(out, runs)
    assert night.images == 11
    assert {part.row["uri"]: part.row["score"] for part in night.parts}[parts[0].uri] == 9.0
    with pytest.raises(FileNotFoundError, match="no finished run of the night 2026-11-19"):
        run_records.of_night(out, "2026-11-19")


def test_of_another_model_verdicts_and_p_values_are_compared_but_not_scores(tmp_path):
    parts = [Part(f"{i}.png", "bolt", i / 10) for i in range(40)]
    out = Out(str(tmp_path))
    finish(str(tmp_path), parts, model_of(["bolt"]), "2026-11-20", NONE)
    lower = [replace(part, score=part.score - 1) for part in parts]
    finish(str(tmp_path), lower, model_of(["bolt"], seed=1), "2026-11-21", NONE)
    night = collect(out)
    assert (night.has_earlier, night.same_unit) == (True, False)
    assert night.products[0]["measure"] == "p_value"
    assert not night.histograms["bolt"].before.any()
    assert night.changed_verdicts.became_normal == 10


def test_what_is_left_of_an_expired_run_is_no_report(nights):
    record = run_records.latest(nights[0], 1)[0] | {"expired": {"rows": 3, "at": "2026-12-01"}}
    with pytest.raises(UserError, match=r"only the 3 rows remain"):
        collect(nights[0], [record])


def test_pictures_are_shown_as_they_were_scored_or_a_sentence_says_why_not(tmp_path):
    root = str(tmp_path)
    names = ("there", "gone", "replaced", "no_map", "quiet")
    parts = [
        pictured(root, Part(f"{name}.png", "bolt", 9.0 - i * 2, folder=f"{root}/parts"))
        for i, name in enumerate(names)
    ]
    run = finish(root, parts, model_of(["bolt"]))
    os.remove(f"{root}/parts/gone.png")
    Image.new("L", (80, 60)).save(f"{root}/parts/replaced.png")
    os.remove(run.out.map(run.model.card.model_id, parts[3].image_id))
    shown = [part.pictures for part in collect(run.out).parts]
    images, overlay = ([bool(getattr(s, kind)) for s in shown] for kind in ("image", "overlay"))
    assert images == [True, False, False, True, True]
    assert overlay == [True, False, False, False, False]
    assert [s.note for s in shown] == [
        "",
        "No picture: it was listed, but no longer exists.",
        "No picture: the file has changed since it was scored.",
        "The anomaly map cannot be read.",
        "No anomaly map was written.",
    ]
    assert not any(s.close_up for s in shown)
    assert all(part.pictures.close_up for part in collect(run.out, parts=1, thumbnail=32).parts)


def drawing(root, decode=DecodeSettings()):
    fetch = FetchSettings(attempts=1)
    return PartPictures(Out(root), {}, InputSettings(), decode, fetch, 64, 9999)


def test_pictures_are_decoded_by_the_settings_of_the_model(tmp_path):
    values = np.linspace(0, 2, 48, dtype=np.float32).reshape(6, 8)
    data = tiffs.file(tiffs.page(values * 0, 32), tiffs.page(values, 32))
    (tmp_path / "a.tif").write_bytes(data)
    row = {"uri": uris.make(str(tmp_path / "a.tif")), "map_uri": None, "peak_x": 0, "peak_y": 0}
    row |= {"content_sha256": hashlib.sha256(data).hexdigest(), "image_id": "1", "product": "bolt"}

    def pictures(**decode):
        [part] = drawing(str(tmp_path), DecodeSettings(range="0,2", **decode)).parts([row], [])
        return part.pictures

    shown = pictures(page=2)
    assert (bool(shown.image), shown.note) == (True, "No anomaly map was written.")
    assert "it has 2 frames or pages" in pictures().note


def test_time_and_cost_are_those_on_record(nights):
    out = nights[0]
    record = run_records.latest(out, 1)[0]
    assert collect(out, parts=0, price_per_hour=3.0).cost is None  # no seconds are on record
    timed = record | {"totals": record["totals"] | {"seconds": 1800.0, "resumed": 30}}
    timed_night = collect(out, [timed], parts=0, price_per_hour=3.0, currency="EUR")
    assert timed_night.cost == pytest.approx(1.5)
    assert timed_night.images_per_second == pytest.approx(90 / 1800)
    page = report.render(out, timed_night).decode()
    assert "1.50 <small>EUR</small>" in page
    assert "in 30 min, not counting 30 images of earlier attempts" in page
    free = collect(out, [timed], parts=0)
    assert free.cost is None
    assert "Cost" not in report.render(out, free).decode()


@pytest.mark.parametrize(
    "setting",
    [
        {"parts": -1},
        {"parts": 1001},
        {"more_parts": -1},
        {"more_parts": 20_001},
        {"thumbnail": 8},
        {"thumbnail": 4096},
    ]
    + [{"price_per_hour": price} for price in (-1.0, float("nan"), float("inf"))],
)
def test_settings_without_bounds_are_refused(setting):
    with pytest.raises(UserError, match="must"):
        ReportSettings(**setting)


class Elements(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]


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


def in_tar(root, members):
    """Parts that are members of one tar, and its inventory rows, in the order of the tar."""
    path = f"{root}/t.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return list(entries(path))


def png(value, size=(80, 60)):
    out = io.BytesIO()
    Image.new("L", size, value).save(out, "PNG")
    return out.getvalue()


def located(root, found, members):
    """Pictures of rows that name members by their address alone, as a score table does."""
    rows = [
        {"image_id": image_id(e.uri, e.version), "uri": e.uri, "version": e.version}
        | {"member": e.member, "bytes": e.bytes}
        for e in found
    ]
    inventory = f"{root}/listed.parquet"
    parquet.write(inventory, SCHEMA, [pa.Table.from_pylist(rows, SCHEMA)])
    scored = [
        {"image_id": row["image_id"], "uri": row["uri"], "bit_depth": 8, "map_uri": None}
        | {"peak_x": 0, "peak_y": 0, "content_sha256": hashlib.sha256(data).hexdigest()}
        for row, (_, data) in zip(rows, members, strict=True)
    ]
    draw = drawing(root)
    return {p.row["image_id"]: p.pictures for p in draw.parts(scored[::-1], [inventory])}, scored


def test_members_of_one_name_are_shown_each_with_its_own_bytes(tmp_path):
    members = [("a.png", png(20)), ("a.png", png(220)), ("b.png", png(120))]
    shown, rows = located(str(tmp_path), in_tar(str(tmp_path), members), members)
    levels = []
    for row in rows:
        data = base64.b64decode(shown[row["image_id"]].image.partition(",")[2])
        levels.append(round(float(np.asarray(Image.open(io.BytesIO(data))).mean())))
    assert levels == [20, 220, 120]


def test_members_of_a_rewritten_archive_are_found_by_name(tmp_path):
    members = [("a.png", png(20)), ("b.png", png(120))]
    found = in_tar(str(tmp_path), members)
    in_tar(str(tmp_path), [("new.png", png(1, (300, 300)) + b"x" * 999), members[1]])
    shown, rows = located(str(tmp_path), found, members)
    notes = [shown[row["image_id"]].note for row in rows]
    assert notes == [
        "No picture: the archive no longer contains it.",
        "No anomaly map was written.",
    ]


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_a_map_of_another_shape_is_left_out_with_both_shapes(fit):
    settings = InputSettings(32, fit=fit, short_side=40)
    for drawn in ((80, 60), (60, 80), (81, 61), (32, 32), (1000, 37)):
        values = np.zeros((32, 32), np.float32)
        png_of_map = map_png.encode(values, Scale(0.0, 1.0), geometry(*drawn, settings), "m")
        decoded = map_png.decode(png_of_map)
        assert map_png.picture_size(decoded, settings, drawn) == drawn
        assert map_png.picture_size(decoded, settings, (64, 48)) == drawn


def test_a_map_of_a_picture_that_stands_upright_now_is_not_laid_over_it(tmp_path):
    root = str(tmp_path)
    part = pictured(root, Part("a.png", "bolt", 9.0, folder=f"{root}/parts"))
    run = finish(root, [part], model_of(["bolt"]))
    Image.new("L", (60, 80)).save(f"{root}/parts/a.png")
    table = run.out.table("2026-11-20", run.run_id)
    rows = parquet.read(table)
    data = files.read_bytes(f"{root}/parts/a.png")
    digest = pa.array([hashlib.sha256(data).hexdigest()])
    at = rows.schema.get_field_index("content_sha256")
    parquet.write(table, rows.schema, [rows.set_column(at, rows.schema.field(at), digest)])
    (shown,) = [part.pictures for part in collect(run.out).parts]
    assert shown.image
    assert not shown.overlay
    assert shown.note == (
        "The anomaly map is left out: it was drawn for a picture of 80 x 60 px, and this one has "
        "60 x 80."
    )
