"""The order of runs is that of their numbers, whatever clocks and dates say."""

from __future__ import annotations

import datetime
import os
import time

import pytest

from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports.drift import drift_of_run
from pipelines.tables import current_scores, run_order, run_records
from pipelines.tables.retention import expire
from tests.runs import NOW, Part, finish, model_of

MODEL = model_of(["bolt"])
MODEL_ID = MODEL.card.model_id


@pytest.fixture
def out(tmp_path):
    return Out(str(tmp_path))


def night(out, date, score):
    """A run of a date over one image; its `scored_at` is the same every time."""
    return finish(out.root, [Part("0.png", "bolt", score)], MODEL, date)


@pytest.mark.parametrize(
    "dates",
    [
        ("2026-11-20", "2026-11-22", "2026-11-21"),  # a clock was ahead for one night
        ("2026-11-20", "2025-11-21", "2025-11-22"),  # it was set back by a year
        ("2026-11-20", "2026-11-21", "1999-01-01"),  # a night was named by hand
    ],
)
def test_the_last_run_counts_whatever_its_date(out, dates):
    runs = [night(out, date, float(place)) for place, date in enumerate(dates)]
    assert [run.number for run in runs] == [1, 2, 3]
    [row] = current_scores.current(out, MODEL_ID).to_pylist()
    assert (row["run_id"], row["score"], row["run_number"]) == (runs[2].run_id, 2.0, 3)
    latest = [record["run_id"] for record in run_records.latest(out, 2)]
    assert latest == [runs[1].run_id, runs[2].run_id]
    first, second = (run_records.recorded(out, run.run_id) for run in runs[:2])
    assert run_records.started_after(out, first) == [runs[1].run_id, runs[2].run_id]
    assert run_records.started_after(out, second) == [runs[2].run_id]
    assert drift_of_run(out, runs[2].run_id, MODEL_ID)["images_a"].to_pylist() == [2]
    removed = expire(out, 1, [], remove=True)
    assert {table.run_id for table in removed.tables} == {runs[0].run_id, runs[1].run_id}
    assert current_scores.published(out) == [out.table(dates[2], runs[2].run_id)]
    assert current_scores.current(out, MODEL_ID).to_pylist() == [row]


def test_numbers_go_on_after_records_or_tables_are_lost(out):
    for day in (20, 21):
        night(out, f"2026-11-{day}", 1.0)
    assert run_order.next_number(out) == 3
    files.remove_folder(out.runs())
    assert run_order.next_number(out) == 3
    third = night(out, "2026-11-22", 1.0)
    assert third.number == 3
    files.remove_folder(out.scores())
    assert run_order.next_number(out) == 4
    files.remove_folder(out.runs())
    assert run_order.next_number(out) == 1


def test_a_clock_behind_the_last_run_is_told(out):
    assert run_order.clock_warning(out, NOW) == ""
    night(out, "2026-11-22", 1.0)
    assert run_order.clock_warning(out, NOW.replace(day=22)) == ""
    warning = run_order.clock_warning(out, NOW.replace(day=21))
    assert "says 2026-11-21T03:00:00+00:00, but the last run started at 2026-11-22T03" in warning
    assert warning.endswith("set the clock, or name the night with --night")
    night(out, "2026-11-21", 2.0)  # the next start is compared with this one alone
    assert run_order.clock_warning(out, NOW.replace(day=21, hour=4)) == ""


def test_records_of_nights_sort_in_their_order_also_where_local_time_jumps(out, monkeypatch):
    """At the end of daylight saving, 02:30 comes twice in Berlin; nights have names in UTC."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        change = datetime.datetime(2026, 10, 25, 0, 30, tzinfo=datetime.UTC)
        hours = (0, 1, -24)
        assert [(change + datetime.timedelta(hours=h)).astimezone().hour for h in hours] == [
            2,
            2,
            2,
        ]
        names = []
        for hour in hours:
            name = run_order.name_of_night(out, change + datetime.timedelta(hours=hour))
            files.write_json(out.night(name), {"name": name})
            names.append(name)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert names == [
        "00000001-2026-10-25T00-30-00",
        "00000002-2026-10-25T01-30-00",
        "00000003-2026-10-24T00-30-00",
    ]
    assert sorted(os.listdir(out.nights())) == [f"{name}.json" for name in names]
    assert run_records.last_night(out) == {"name": names[2]}
