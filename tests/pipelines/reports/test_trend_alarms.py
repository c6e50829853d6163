"""Alarms where a product differs from its earlier nights, over drawn summaries."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.reports import trend_alarms
from pipelines.reports.run_summary import SUMMARY
from pipelines.reports.trend_alarms import Alarm


def summaries(rng, nights, products, change=None, models=()):
    """Rows of nights whose shares and medians vary between nights; `change` is of the last one."""
    rows = []
    for night in range(nights):
        for product in range(products):
            images = int(rng.integers(50, 500))
            median = rng.normal(1.0, 0.05) + rng.normal(0, 0.2 / np.sqrt(images))
            share = rng.beta(4, 96)
            if night == nights - 1 and product == 0 and change:
                median, share = change(median, share)
            rows.append(
                {
                    "product": f"p{product}",
                    "run_number": night + 1,
                    "model_id": models[night] if models else "m",
                    "images": images + 1,
                    "failed": 1,
                    "anomalous": int(rng.binomial(images, share)),
                    "q25": median - 0.11,
                    "median": median,
                    "q75": median + 0.11,
                }
            )
    return pa.Table.from_pylist(rows, SUMMARY)


def publish(out, table):
    """Write the records and summaries of runs; returns the last record."""
    record = {}
    for number in sorted(set(table["run_number"].to_pylist())):
        record = {"run_id": f"r{number}", "number": number, "started": "x", "totals": {"images": 1}}
        files.write_json(out.run(f"r{number}"), record)
        rows = table.filter(pc.equal(table["run_number"], number))
        parquet.write(out.run_summary(f"r{number}"), SUMMARY, [rows])
    return record


@pytest.mark.parametrize(
    ("figure", "change"),
    [
        ("median score", lambda median, share: (median + 0.6, share)),
        ("median score", lambda median, share: (median - 0.6, share)),
        ("share of anomalous images", lambda median, share: (median, 0.6)),
    ],
)
def test_only_what_changed_has_an_alarm(figure, change):
    table = summaries(np.random.default_rng(0), 30, 12, change)
    (alarm,) = trend_alarms.find(table, 30)
    last = next(row for row in table.to_pylist() if row["run_number"] == 30)
    assert (alarm.product, alarm.figure, alarm.nights) == ("p0", figure, 29)
    assert alarm.value == (
        last["median"] if figure == "median score" else last["anomalous"] / (last["images"] - 1)
    )
    assert alarm.q < 0.01
    assert not alarm.low <= alarm.value <= alarm.high
    assert trend_alarms.find(table, 29) == []


def test_without_a_change_about_one_night_in_a_hundred_has_an_alarm():
    """200 nights of 8 products, which are 16 tests each, at ten times the level."""
    rng = np.random.default_rng(0)
    level, nights = 0.1, 200
    alarmed = sum(bool(trend_alarms.find(summaries(rng, 12, 8), 12, level)) for _ in range(nights))
    assert 0 < alarmed <= level * nights + 3 * np.sqrt(level * nights)


def test_few_nights_under_the_model_let_expect_nothing():
    def change(median, share):
        return 50.0, share

    rng = np.random.default_rng(0)
    assert trend_alarms.find(summaries(rng, 8, 1, change), 8) == []
    assert len(trend_alarms.find(summaries(rng, 9, 1, change), 9)) == 1
    models = ["old"] * 20 + ["new"] * 8
    assert trend_alarms.find(summaries(rng, 28, 1, change, models), 28) == []
    assert trend_alarms.find(summaries(rng, 0, 0), 1) == []


def test_a_product_without_scores_in_the_night_has_no_alarm():
    rows = summaries(np.random.default_rng(0), 20, 2).to_pylist()
    rows[-1] |= {"failed": rows[-1]["images"], "median": None, "q25": None, "q75": None}
    rows[-2] |= {"median": 9.0, "q25": 8.9, "q75": 9.1}
    (alarm,) = trend_alarms.find(pa.Table.from_pylist(rows, SUMMARY), 20)
    assert alarm.product == "p0"


def test_alarms_are_sentences():
    share = Alarm("bolt", "share of anomalous images", 0.31, 0.0, 0.021, 30, 0.00041)
    assert str(share) == (
        "the share of anomalous images of 'bolt' is 31.0%, outside of the 0.0% to 2.1% of its 30 "
        "earlier nights under this model (q = 0.0004)"
    )
    assert "median score of None is 2.5, outside of the 1 to 1.25 of" in str(
        Alarm(None, "median score", 2.5, 1.0, 1.25, 9, 0.001)
    )


def test_a_run_warns_of_its_products(tmp_path):
    def change(median, share):
        return 9.0, share

    out, table = Out(str(tmp_path)), summaries(np.random.default_rng(0), 12, 2, change)
    record = publish(out, table)
    (sentence,) = trend_alarms.warnings_of(out, record, 90, 0.01)
    assert sentence.startswith("the median score of 'p0' is 9, outside of the ")
    assert "of its 11 earlier nights" in sentence
    assert trend_alarms.warnings_of(out, record, 8, 0.01) == []
    assert trend_alarms.warnings_of(out, record, 90, 0.0) == []
    # A change of all products, as of a lamp.
    rows = summaries(np.random.default_rng(0), 12, 15).to_pylist()
    changed = [row | ({"median": 9.0} if row["run_number"] == 12 else {}) for row in rows]
    publish(out, table := pa.Table.from_pylist(changed, SUMMARY))
    found = len(trend_alarms.find(table, 12))
    assert found >= 15
    sentences = trend_alarms.warnings_of(out, record, 90, 0.01)
    assert len(sentences) == 11
    assert (
        sentences[-1]
        == f"{found - 10} more figures of products lie outside of their earlier nights"
    )
