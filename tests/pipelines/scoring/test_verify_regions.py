"""Each kind of damage of a table of regions is found and named. The run is drawn, without Ray."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pytest

from ops.results import region_table
from ops.results.calibration import Calibration
from ops.storage import files, parquet
from pipelines.scoring import verify
from pipelines.scoring.run import ScoreSettings
from pipelines.scoring.violations import RunUnderCheck
from tests.runs import Part, finish, model_of

PARTS = [Part("a.png", "bolt", 2.5), Part("b.png", "bolt", 1.0), Part("c.png", "bolt", None)]


@pytest.fixture
def run(tmp_path):
    """A run whose first image has two regions."""
    model = model_of(["bolt"])
    card = dataclasses.replace(model.card.products["bolt"], peaks=Calibration((3.0, 4.0, 5.0)))
    card = dataclasses.replace(model.card, products={"bolt": card}, region_false_alarm_rate=0.25)
    run = finish(
        str(tmp_path), PARTS, dataclasses.replace(model, card=card), settings=ScoreSettings("none")
    )
    write(run, [region(run, 1, 7.0), region(run, 2, 6.0)])
    location = run.out.run(run.run_id)
    record = files.read_json(location)
    record["totals"]["regions"] = 2
    files.write_json(location, record)
    return run


def region(run, number, largest):
    box = {"box_x": 70, "box_y": 50, "box_width": 10, "box_height": 10, "area": 90.5}
    place = {"centroid_x": 75.0, "centroid_y": 55.0, "touches_border": True}
    names = {"image_id": PARTS[0].image_id, "run_id": run.run_id}
    values = {"number": number, "largest": largest, "mean": 5.5, "p_value": 0.25}
    return names | {"model_id": run.model.card.model_id} | box | place | values


def write(run, rows):
    table = pa.Table.from_pylist(rows, region_table.SCHEMA)
    parquet.write(run.out.region_table(run.night, run.run_id), region_table.SCHEMA, [table])


def broken(run):
    record = files.read_json(run.out.run(run.run_id))
    checked = RunUnderCheck(run.out, run.run_id, record, record["inventory"], run.model.card)
    return list(verify.check(checked, 1.0, lambda *_: None).violations)


def test_a_sound_table_passes(run):
    assert broken(run) == []


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"image_id": "f" * 32}, "every region belongs to an image of the run with a score"),
        ({"image_id": PARTS[2].image_id}, "every region belongs to an image of the run"),
        ({"run_id": "2026-11-19-0"}, "regions have the run_id and model_id of the record"),
        ({"box_width": 11}, "regions lie within their pictures"),
        ({"centroid_y": 59.5}, "regions lie within their pictures"),
        ({"area": 0.0}, "regions have an area of at least the recorded regions.min_area"),
        ({"mean": 6.5}, "the mean of a region is at most its largest value"),
        ({"number": 3}, "regions of an image are numbered from 1"),
        ({"largest": 8.0}, "regions of an image are numbered from 1"),
        ({"largest": 5.0, "mean": 4.0}, "the largest value of a region is above the pixel"),
        ({"p_value": 0.5}, "regions have the p_value that the model gives"),
    ],
)
def test_a_damaged_row_is_named(run, change, rule):
    write(run, [region(run, 1, 7.0), region(run, 2, 6.0) | change])
    assert any(found.startswith(rule) for found in broken(run))


def test_a_lost_a_short_and_a_damaged_table_are_named(run):
    location = run.out.region_table(run.night, run.run_id)
    write(run, [region(run, 1, 7.0)])
    assert broken(run) == ["the record's total of regions is the table's"]
    files.write_bytes(location, b"PAR1")
    assert broken(run) == ["the table of regions can be read to its end"]
    files.remove_file(location)
    assert broken(run) == ["the run's table of regions exists"]
