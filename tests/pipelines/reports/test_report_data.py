"""What a report says of drawn nights, without Ray: its numbers, and the rows it lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ops.errors import UserError
from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports import report
from pipelines.reports.report_data import ReportSettings
from pipelines.reports.report_queries import BINS
from pipelines.tables import run_records
from tests.drawn_nights import NONE, PRODUCTS, THRESHOLD, collect
from tests.runs import Part, finish, model_of


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
