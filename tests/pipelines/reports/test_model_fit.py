"""Warnings that a model does not fit its images, over counts, tables and inventories."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.results.calibration import Calibration
from ops.results.drift import chance_of_flagged
from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports import model_fit
from pipelines.reports.model_fit import ProductCounts, unknown_products
from pipelines.scoring.run import ScoreSettings
from tests.runs import Part, finish, list_parts, model_of


def card_of(held_out, rate=0.01, sizes=None, depths=None, products=("cell",)):
    card = model_of(["cell"]).card
    known = replace(
        card.products["cell"],
        calibration=Calibration.of(range(held_out)),
        sizes=sizes or {},
        bit_depths=depths or {},
    )
    return replace(card, products=dict.fromkeys(products, known), false_alarm_rate=rate)


def find_misfits(counts, card, limit, rates=()):
    return model_fit.find_misfits(counts, card, card.rates(dict(rates)), limit)


def calls(images, anomalous, parts=None):
    return {"cell": ProductCounts(images, anomalous, units=parts or images)}


def test_what_is_called_beyond_the_promise_is_told_from_the_first_night_on():
    [sentence] = find_misfits(calls(200, 193), card_of(99), 0.1)
    assert sentence == (
        "193 of 200 images of 'cell' (96%) are called anomalous, and calibration promises 1.00% of "
        "good images on average: is it another model, light, lens or camera? Or did the fit see "
        "several images of a part whose paths do not name it ({part})? Look at the images before "
        "you trust the verdicts"
    )


@pytest.mark.parametrize(
    ("images", "anomalous", "held_out", "limit", "warns"),
    [
        (200, 22, 99, 0.1, False),  # at the limit
        (200, 23, 99, 0.1, True),
        (200, 193, 99, 1.0, False),  # turned off
        (200, 193, 0, 0.1, False),  # nothing is promised
        (1, 1, 99, 0.1, False),  # chance: one in a hundred
        (2, 2, 99, 0.1, True),
        (2, 2, 9, 0.1, False),  # promises 10 %, and a draw of nine says little
        (9, 9, 9, 0.1, True),
    ],
)
def test_chance_and_the_limit_are_no_warning(images, anomalous, held_out, limit, warns):
    found = find_misfits(calls(images, anomalous), card_of(held_out), limit)
    assert bool(found) == warns


@pytest.mark.parametrize(
    ("images", "anomalous", "parts", "warns"),
    [
        (12, 6, 12, True),
        (12, 6, 2, False),  # all six images of one of two parts: chance, two in a hundred
        (12, 12, 2, True),
        (600, 300, 100, True),
    ],
)
def test_images_of_one_part_are_one_call(images, anomalous, parts, warns):
    found = find_misfits(calls(images, anomalous, parts), card_of(99), 0.1)
    assert bool(found) == warns


def test_the_chance_is_that_of_drawn_calibrations():
    rng = np.random.default_rng(0)
    held_out, images, rate = 19, 30, 0.1
    threshold = np.sort(rng.random((20_000, held_out)), axis=1)[:, 17]  # promises 2 of 20
    flagged = (rng.random((20_000, images)) > threshold[:, None]).sum(axis=1)
    for count in (1, 5, 10):
        expected = chance_of_flagged(count, images, rate, held_out)
        assert (flagged >= count).mean() == pytest.approx(expected, abs=0.01)
    assert chance_of_flagged(0, images, rate, held_out) == 1.0
    assert chance_of_flagged(5, images, 1.0, 0) == 1.0


@pytest.mark.parametrize(
    ("known", "tonight", "told"),
    [
        ({"640x480": 50}, {"640x480": 90, "80x60": 110}, "110 of 200 images of 'cell'"),
        ({"640x480": 50}, {"640x480": 180, "80x60": 20}, ""),
        ({"640x480": 50}, {"480x640": 200}, "such as 480 x 640 instead of 640 x 480 pixels"),
        ({f"{n}x9": 1 for n in range(50)}, {"640x480": 200}, ""),  # each image has its own size
        ({}, {"640x480": 200}, ""),
    ],
)
def test_other_sizes_are_told_unless_the_known_ones_vary_as_much(known, tonight, told):
    counts = {"cell": ProductCounts(200, 0, Counter(tonight), Counter())}
    found = find_misfits(counts, card_of(99, sizes=known), 0.1)
    assert len(found) == bool(told)
    assert told in "".join(found)


def test_other_depths_are_told():
    counts = {"cell": ProductCounts(10, 0, Counter(), Counter({"8": 8, "16": 2}))}
    assert find_misfits(counts, card_of(99, depths={"8": 50}), 0.1) == [
        "2 of 10 images of 'cell' have 16 bits, and the model was fitted on images of 8 bits"
    ]
    assert find_misfits(counts, card_of(99, depths={"8": 50, "16": 1}), 0.1) == []
    assert find_misfits(counts, card_of(99), 0.1) == []


def test_many_products_are_counted():
    names = [f"p{n:02d}" for n in range(30)]
    counts = {n: calls(1000, 900 + i)["cell"] for i, n in enumerate(names)}
    found = find_misfits(counts, card_of(99, products=names), 0.1)
    assert len(found) == 11
    assert found[0].startswith("929 of 1,000 images of 'p29' (93%)")
    told = "20 more products have more anomalous images than their calibration promises"
    assert found[10] == told


def test_a_run_is_judged_by_its_table(tmp_path):
    model = model_of(["cell", "tile"])
    scores = {"cell": 9.0, "tile": 0.5}
    parts = [Part(f"{name}{i}", name, s) for name, s in scores.items() for i in range(40)]
    run = finish(str(tmp_path), [*parts, Part("x", "cell", None)], model, settings=ScoreSettings())
    record = files.read_json(run.out.run(run.run_id))
    card = replace(model.card, products=card_of(99, products=("cell", "tile")).products)
    [sentence] = model_fit.of_run(Out(str(tmp_path)), record, card, 0.1)
    assert sentence.startswith("40 of 40 images of 'cell' (100%) are called anomalous")


def test_parts_of_a_run_are_counted_in_its_table(tmp_path):
    model = model_of(["cell"])
    parts = [Part(f"{n}", "cell", 9.0 if n < 6 else 0.5) for n in range(12)]
    run = finish(str(tmp_path), parts, model, settings=ScoreSettings())
    record = files.read_json(run.out.run(run.run_id))
    card = replace(model.card, products=card_of(99).products)
    assert len(model_fit.of_run(run.out, record, card, 0.1)) == 1
    table = run.out.table(str(record["night"]), run.run_id)
    rows = pq.read_table(table).sort_by([("score", "descending")])
    at = rows.schema.get_field_index("part")
    names = pa.array(["1"] * 6 + ["2"] * 6, pa.string())
    pq.write_table(rows.set_column(at, rows.schema.field(at), names), table)
    assert model_fit.of_run(run.out, record, card, 0.1) == []


def test_unknown_products_are_told_with_what_was_meant(tmp_path):
    parts = [Part("1", "cells", 1.0), Part("2", "cells", 1.0), Part("3", "cell", 1.0)]
    listed = list_parts(str(tmp_path / "i.parquet"), [*parts, Part("4", "nut", 1.0)])
    assert unknown_products(listed, card_of(9)) == (
        "the model has no detector for 2 of 3 products, such as 'cells' (did you mean 'cell'?): 3 "
        "images will have no score. It knows 'cell'; correct --pattern or --product, or fit the "
        "products"
    )
    assert unknown_products(listed, card_of(9, products=("cell", "cells", "nut"))) == ""
