"""A run's scores against all earlier ones, in generated nights without Ray."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ops.results.score_table import SCHEMA
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.reports import compare
from pipelines.reports.alerts import AlertLimits, find_alerts
from pipelines.reports.compare import CompareSettings
from pipelines.reports.drift import DRIFT, drift_of_run
from pipelines.reports.sides import Runs
from pipelines.scoring.run import ScoreSettings
from pipelines.tables import run_records
from tests.runs import Part, finish, model_of

NONE = ScoreSettings("none", False, 100)
PRODUCTS = ("bolt", "nut")


def parts(seed, count=80, shift=0.0, failed=0):
    """Parts of a night; only bolts are shifted."""
    rng = np.random.default_rng(seed)
    drawn = [
        Part(
            f"{seed}/{product}/{i}.png",
            product,
            float(rng.normal(1.6, 0.4)) + shift * (product == "bolt"),
        )
        for product in PRODUCTS
        for i in range(count)
    ]
    return [replace(part, score=None) for part in drawn[:failed]] + drawn[failed:]


def night(root, day, drawn, seed=0):
    return finish(str(root), drawn, model_of(PRODUCTS, seed), f"2026-11-{day}", NONE)


def drift(root, run, **sample):
    return drift_of_run(Out(str(root)), run.run_id, run.model.card.model_id, **sample)


def test_a_first_night_has_no_drift(tmp_path):
    assert len(drift(tmp_path, night(tmp_path, 20, parts(0)))) == 0


def test_the_drift_of_two_nights_is_that_of_their_comparison(tmp_path):
    night(tmp_path, 20, parts(0))
    run = night(tmp_path, 21, parts(1, shift=1.0, failed=3))
    rows_of_drift = drift(tmp_path, run)
    assert rows_of_drift.schema.equals(DRIFT, check_metadata=True)
    out = Out(str(tmp_path))
    sides = Runs(out, *run_records.latest(out, 2))
    both = compare.compare(sides, "", CompareSettings(), lambda *_: None)
    assert rows_of_drift.equals(both.products.select(DRIFT.names).cast(DRIFT))


def test_a_night_is_compared_with_all_earlier_nights_of_its_model(tmp_path):
    night(tmp_path, 17, parts(0))
    night(tmp_path, 18, parts(1))
    night(tmp_path, 19, parts(2), seed=1)
    run = night(tmp_path, 20, parts(3))
    bolt, nut = drift(tmp_path, run).to_pylist()
    assert (bolt["images_a"], nut["images_a"], bolt["images_b"]) == (160, 160, 80)
    assert {bolt["measure"], nut["measure"]} == {"score"}


def test_p_values_are_compared_if_the_model_is_new(tmp_path):
    night(tmp_path, 19, parts(0))
    run = night(tmp_path, 20, [replace(p, score=p.score * 1000) for p in parts(1)], seed=1)
    (bolt, _) = drift(tmp_path, run).to_pylist()
    assert bolt["measure"] == "p_value"
    assert bolt["images_a"] == 80
    assert bolt["median_a"] <= 1


def test_a_sample_depends_on_ids_alone_and_its_size_is_recorded(tmp_path):
    first = night(tmp_path, 19, parts(0))
    run = night(tmp_path, 20, parts(1))
    rows_of_drift = drift(tmp_path, run, sample=20)
    assert (
        set(rows_of_drift["tested_a"].to_pylist())
        == set(rows_of_drift["tested_b"].to_pylist())
        == {20}
    )
    place = Out(str(tmp_path)).table(first.night, first.run_id)
    rows = parquet.read(place)
    order = np.random.default_rng(0).permutation(len(rows))
    parquet.write(place, SCHEMA, [rows.take(order)])
    assert drift(tmp_path, run, sample=20).equals(rows_of_drift)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """Totals and drift of a night whose bolts are shifted and of which two images failed."""
    root = tmp_path_factory.mktemp("out")
    night(root, 19, parts(0))
    run = night(root, 20, parts(1, shift=1.0, failed=2))
    return run_records.finished(Out(str(root)), run.run_id)["totals"], drift(root, run)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (AlertLimits("1", 0.25), ["2 of 160 images failed (2 unreadable), ", "scores of 'bolt'"]),
        (AlertLimits("2%", 0.25), ["scores of 'bolt' drifted: PSI "]),
        (AlertLimits("1%", float("inf")), ["2 of 160 images failed (2 unreadable), more than --w"]),
        (AlertLimits("2%", float("inf")), []),
    ],
)
def test_each_limit_that_is_exceeded_is_an_alert(shifted, limits, expected):
    totals, drift_rows = shifted
    alerts = find_alerts(totals, drift_rows, limits)
    assert len(alerts) == len(expected)
    for sentence, beginning in zip(alerts, expected, strict=True):
        assert sentence.startswith(beginning)


def test_a_night_like_the_one_before_gives_no_alert(tmp_path):
    night(tmp_path, 19, parts(0))
    run = night(tmp_path, 20, parts(1))
    totals = run_records.finished(Out(str(tmp_path)), run.run_id)["totals"]
    assert find_alerts(totals, drift(tmp_path, run), AlertLimits("1%", 0.25)) == []


def test_a_large_shift_that_chance_may_explain_gives_no_warning(tmp_path):
    """The stability index of four images is always large."""
    night(tmp_path, 19, parts(0))
    run = night(tmp_path, 20, parts(1, count=4))
    rows_of_drift = drift(tmp_path, run)
    assert max(rows_of_drift["psi"].to_pylist()) > 0.25
    totals = run_records.finished(Out(str(tmp_path)), run.run_id)["totals"]
    assert find_alerts(totals, rows_of_drift, AlertLimits("1%", 0.25)) == []
