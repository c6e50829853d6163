"""One cluster, one model, one archive with broken files; run once, asserted many times."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ops.archives.fetch import FetchSettings
from ops.detectors.ensemble import EnsembleSettings
from ops.detectors.model_folder import Model, read_model, write_model
from ops.failure import TooManyFailures
from ops.features.backbone import Backbone
from ops.images.inspection_files import hashes, read_masks
from ops.images.resize import InputSettings
from ops.results import map_png, score_table
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.cluster import memory
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel
from pipelines.fitting import fit, plan, worker
from pipelines.fitting.ensemble import EnsembleRequest, ensemble
from pipelines.fitting.rehearsal import rehearse_on_worker
from pipelines.fitting.request import split
from pipelines.reports import evaluate
from pipelines.scoring import score, verify
from pipelines.scoring.chunks import Chunks
from pipelines.scoring.resume import resume_or_start
from pipelines.scoring.run import ScoreSettings
from pipelines.scoring.stream import draw_step
from pipelines.scoring.violations import RunUnderCheck
from tests.conftest import draw_archive
from tests.pipelines.deadly import DeadlyCheckpoint, DeadlyStream
from tests.pipelines.scored_archive import BROKEN, SLOTS, nothing, request, scored_archive, take

pytestmark = [pytest.mark.ray]


@pytest.fixture(scope="module")
def world(cluster, tmp_path_factory):
    return scored_archive(tmp_path_factory)


def test_every_image_is_one_row_in_the_inventorys_order(world):
    listed = world.inventory.read()
    assert world.table["image_id"].to_pylist() == listed["image_id"].to_pylist()
    assert world.totals["images"] == len(listed) == 2 * 17 + len(BROKEN)
    assert score_table.violations(world.table) == []
    assert world.table.schema.field("score").metadata[b"meaning"]
    regions = parquet.read(world.out.region_table(world.run.night, world.run.run_id))
    assert len(regions) == world.totals["regions"] > 0
    assert set(regions["image_id"].to_pylist()) <= set(listed["image_id"].to_pylist())


def test_a_check_of_the_files_finds_the_promise_kept(world):
    record = files.read_json(world.out.run(world.run.run_id))
    place, card = world.inventory.location, world.model.card
    subject = RunUnderCheck(world.out, world.run.run_id, record, place, card)
    found = verify.check(subject, 1.0, nothing)
    assert found.violations == {}
    assert (found.images, found.maps_named, found.maps_read) == (39, 34, 34)


def test_broken_files_are_rows_that_say_why(world):
    rows = {r["uri"].rsplit("/", 1)[-1]: r for r in world.table.to_pylist()}
    for name, status in BROKEN.items():
        assert rows[name]["status"] == status, rows[name]
        assert len(rows[name]["reason"]) > 10
        assert rows[name]["score"] is None
    assert world.totals["statuses"] == {"missing": 1, "ok": 34, "unreadable": 3, "unsupported": 1}


def test_defects_score_higher_and_peaks_lie_in_them(world):
    listed = {r["image_id"]: r for r in world.inventory.read().to_pylist()}
    rows = [r for r in world.table.to_pylist() if r["status"] == "ok"]
    hits = 0
    for product in ("fabric", "washer"):
        mine = [r for r in rows if r["product"] == product]
        bad = [r for r in mine if listed[r["image_id"]]["label"] == 1]
        good = [r["score"] for r in mine if listed[r["image_id"]]["label"] == 0]
        assert np.mean([r["score"] for r in bad]) > np.max(good) * 0.9
        for row in bad:
            mask = Image.open(uris.parse(listed[row["image_id"]]["mask_uri"]).location)
            near = np.asarray(mask)[
                max(0, row["peak_y"] - 6) : row["peak_y"] + 7,
                max(0, row["peak_x"] - 6) : row["peak_x"] + 7,
            ]
            hits += bool(near.any())
    assert hits >= 7


def test_p_values_and_flags_follow_from_the_models_calibration(world):
    for row in world.table.to_pylist():
        if row["status"] == "ok":
            calibration = world.model.card.products[row["product"]].calibration
            assert row["p_value"] == calibration.p_values(np.array([row["score"]]))[0]
            assert row["is_anomalous"] == (row["score"] > calibration.threshold(0.3))


def test_maps_are_16_bit_on_one_scale_and_overlays_lie_beside_them(world):
    for row in world.table.to_pylist():
        if row["status"] != "ok":
            assert row["map_uri"] is None
            continue
        drawn = map_png.decode(files.read_bytes(uris.parse(row["map_uri"]).location))
        assert drawn.levels.shape == (64, 64)
        assert drawn.scale == world.model.card.map_scale
        # Pictures are as large as maps here; neighbours of the peak may share its grey level.
        assert drawn.levels[row["peak_y"], row["peak_x"]] == drawn.levels.max()
        assert files.exists(world.out.overlay(row["model_id"], row["image_id"]))


def test_repeating_a_finished_run_changes_nothing(world):
    def versions():
        return {item.name: item.version for item in files.listing(world.out.root)}

    before = versions()
    again = score.score(world.run, FetchSettings(), SLOTS, "50%", nothing)
    assert again == world.totals
    assert versions() == before
    assert not any("_work" in name for name in before)


def test_what_a_run_left_that_died_at_its_very_end_does_not_stop_the_next_night(world, tmp_path):
    out = Out(str(tmp_path))
    settings = ScoreSettings("none", False, 10)
    run = resume_or_start(world.inventory, world.model, out, settings, "2020-01-01")
    files.write_bytes(files.join(out.work(run.run_id), "started"), b"")
    taken_up = resume_or_start(world.inventory, world.model, out, settings, None)
    assert taken_up.run_id == run.run_id
    totals = {"images": len(world.inventory), "table": out.table(run.night, run.run_id)}
    record = {"run_id": run.run_id, "number": run.number, "started": "2020-01-01T03:00:00"}
    files.write_json(out.run(run.run_id), record | {"totals": totals})
    schema = pa.schema([column.with_nullable(True) for column in score_table.SCHEMA])
    empty = [pa.nulls(len(world.inventory), column.type) for column in schema]
    parquet.write(totals["table"], schema, [pa.table(empty, schema)])
    tonight = resume_or_start(world.inventory, world.model, out, settings, None)
    assert tonight.night > "2020-01-01"
    assert not os.path.exists(out.work(run.run_id))


def comparable(table):
    return table.drop_columns(["scored_at", "run_id", "run_number", "map_uri"])


def test_another_cut_into_batches_and_workers_gives_the_same_rows(world, tmp_path):
    out = Out(str(tmp_path))
    run = resume_or_start(world.inventory, world.model, out, ScoreSettings("none", False, 7), None)
    resources = Resources(workers=1, cpus=1, reader_cpus=1, batch=17)
    totals = score.score(run, FetchSettings(backoff=0.01), resources, "50%", nothing)
    assert comparable(parquet.read(totals["table"])).equals(comparable(world.table))
    assert not os.path.exists(tmp_path / "maps")


def test_the_top_k_maps_are_those_of_the_highest_scores(world, tmp_path):
    out = Out(str(tmp_path))
    run = resume_or_start(world.inventory, world.model, out, ScoreSettings("top:3"), None)
    totals = score.score(run, FetchSettings(backoff=0.01), SLOTS, "50%", nothing)
    rows = [r for r in parquet.read(totals["table"]).to_pylist() if r["status"] == "ok"]
    rows.sort(key=lambda r: -r["score"])
    assert all(r["map_uri"] for r in rows[:3])
    assert not any(r["map_uri"] for r in rows[3:])
    drawn = [item.name for item in files.listing(out.maps(world.model.card.model_id))]
    assert len(drawn) == 3


def test_too_many_failures_end_the_run_keep_its_rows_and_can_be_continued(world, tmp_path):
    out = Out(str(tmp_path))
    run = resume_or_start(world.inventory, world.model, out, ScoreSettings("none", False, 10), None)
    with pytest.raises(TooManyFailures, match="more than --max_failed allows"):
        score.score(run, FetchSettings(backoff=0.01), SLOTS, "2", nothing)
    assert not os.path.exists(tmp_path / "scores")
    kept = Chunks(out, run.run_id, world.inventory, 10)
    assert kept.done > 0
    taken_up = resume_or_start(
        world.inventory, world.model, out, ScoreSettings("none", False, 10), None
    )
    assert taken_up.run_id == run.run_id
    with pytest.raises(TooManyFailures):
        score.score(taken_up, FetchSettings(backoff=0.01), SLOTS, "4", nothing)
    kept = Chunks(out, run.run_id, world.inventory, 10)
    totals = score.score(taken_up, FetchSettings(backoff=0.01), SLOTS, "5", nothing)
    assert totals["resumed"] == kept.done
    assert comparable(parquet.read(totals["table"])).equals(comparable(world.table))


@pytest.mark.slow
def test_an_image_that_kills_its_workers_becomes_a_row_and_the_others_are_scored(world, tmp_path):
    out = Out(str(tmp_path))
    run = resume_or_start(world.inventory, world.model, out, ScoreSettings("none", False, 10), None)
    draw = draw_step(world.model, out, "none")
    victims = ("washer/test/good/011.png",)
    fetch = FetchSettings(backoff=0.01)
    stream = DeadlyStream(world.model, draw, fetch, SLOTS, world.inventory, victims=victims)
    chunks = Chunks(out, run.run_id, world.inventory, 10)
    score.score_missing(run, stream, chunks, 39, nothing)
    found = pa.concat_tables(chunks.tables()).select(score_table.SCHEMA.names)
    (killer,) = [r for r in found.to_pylist() if r["status"] == "crashed_worker"]
    assert killer["uri"].endswith("washer/test/good/011.png")
    assert "died" in killer["reason"]
    survivors = [r["image_id"] for r in found.to_pylist() if r["status"] != "crashed_worker"]
    expected = [r for r in comparable(world.table).to_pylist() if r["image_id"] in set(survivors)]
    assert [r for r in comparable(found).to_pylist() if r["image_id"] in set(survivors)] == expected


def evaluated(world, table, thresholds):
    """The evaluation of a table of the world's images."""
    labelled, fetched = world.inventory.read(), FetchSettings()
    size = InputSettings(64)
    return evaluate.evaluate(table, labelled, thresholds, size, fetched, SLOTS, nothing)


def test_metrics_come_from_the_published_table_and_maps(world):
    thresholds = files.read_json(world.out.run(world.run.run_id))["thresholds"]
    evaluation = evaluated(world, world.table, thresholds)
    found = evaluation.table.to_pylist()
    assert [row["product"] for row in found] == ["fabric", "washer", "mean"]
    washer = found[1]
    # Broken files lie among the good ones; they are counted, and in no figure.
    assert (washer["good"], washer["defective"], washer["not_scored"]) == (4, 4, 5)
    assert washer["image_auroc"] > 0.9
    assert washer["pixel_auroc"] > 0.8
    assert washer["pixel_images"] == 8
    assert washer["regions"] == washer["regions_drawn"] == 4
    # The threshold on record is the one that the rows were called anomalous by.
    seen = next(s for s in evaluation.separations if s.product == "washer")
    assert washer["threshold"] == seen.threshold
    assert washer["false_alarms"] == (seen.good > seen.threshold).sum()
    assert washer["misses"] == (seen.defective <= seen.threshold).sum()
    assert 0 < washer["pixel_auroc_error"] < 1e-3
    assert seen.pixel_roc.area() == washer["pixel_auroc"]
    assert found[2]["image_auroc"] == pytest.approx(
        (found[0]["image_auroc"] + washer["image_auroc"]) / 2
    )


def test_pixel_figures_are_left_out_when_maps_are_missing(world):
    where = world.table.schema.get_field_index("map_uri")
    uri = world.table["map_uri"].to_pylist()
    uri[next(i for i, value in enumerate(uri) if value)] = None
    table = world.table.set_column(where, "map_uri", pa.array(uri))
    found = evaluated(world, table, {}).table.to_pylist()
    assert found[0]["pixel_auroc"] is None
    assert "maps are missing" in found[0]["note"]
    assert found[1]["pixel_auroc"] is not None


def scored_checked_and_evaluated(world, folder, out):
    """Score the archive with a model, and check what is written; the record of the run."""
    shared, out = SharedModel.read(folder, world.inventory.products()), Out(str(out))
    memory.check_scoring(shared, SLOTS)
    run = resume_or_start(
        world.inventory, shared, out, ScoreSettings("all", True, 10), "2026-11-20"
    )
    totals = score.score(run, FetchSettings(backoff=0.01), SLOTS, "50%", nothing)
    rows = parquet.read(totals["table"])
    assert rows["image_id"].to_pylist() == world.table["image_id"].to_pylist()
    assert rows["status"].to_pylist() == world.table["status"].to_pylist()
    record = files.read_json(out.run(run.run_id))
    subject = RunUnderCheck(out, run.run_id, record, world.inventory.location, shared.card)
    assert verify.check(subject, 1.0, nothing).violations == {}
    fetch, thresholds, size = FetchSettings(), record["thresholds"], shared.card.input
    masks = read_masks(out.inspection_masks(shared.card.model_id), record["masks"])
    assert sorted(shared.masks) == sorted(record["masks"])
    found = evaluate.evaluate(
        *(rows, world.inventory.read(), thresholds, size, fetch, SLOTS, nothing), masks=masks
    ).table.to_pylist()
    assert found[1]["image_auroc"] > 0.9
    assert found[1]["pixel_images"] == 8
    return record


@pytest.mark.slow
def test_tiles_and_ensembles_go_all_the_way_from_the_fit_to_check_and_evaluation(world, tmp_path):
    inspected = np.ones((64, 64), np.uint8) * 255
    inspected[:2] = inspected[:, 62:] = 0
    Image.fromarray(inspected).save(tmp_path / "mask.png")
    tiled = request(
        input=InputSettings(32, fit="tile", overlap=0.5, map_pixels=2_500),
        roi=str(tmp_path / "mask.png"),
    )
    model, alone = (
        fit.fit(world.inventory, tiled, slots, nothing)
        for slots in (SLOTS, replace(SLOTS, workers=1, batch=3))
    )
    assert model.card.model_id == alone.card.model_id
    for product, card in model.card.products.items():
        assert torch.equal(model.products[product]["bank"], alone.products[product]["bank"])
        assert card.counts.images == 9 * world.model.card.products[product].counts.images
        assert len(card.calibration.scores) == 2
    write_model(str(tmp_path / "model"), model)
    record = scored_checked_and_evaluated(world, str(tmp_path / "model"), tmp_path / "out")
    assert record["masks"] == hashes(model.masks)
    assert sorted(record["masks"]) == sorted(model.products)
    members = [
        fit.fit(world.inventory, request(holdout=0.5, input=each), SLOTS, nothing)
        for each in (InputSettings(64), InputSettings(96, exposure="median"))
    ]
    combining = EnsembleRequest(EnsembleSettings(2.0, "smallest_p"), 0.3, FetchSettings())
    both = ensemble(members, world.inventory, combining, SLOTS, nothing)
    for product in both.card.products.values():
        assert len(product.calibration.scores) == 4
    assert sorted(both.pictures) == ["fabric.held-out.png", "washer.held-out.png"]
    write_model(str(tmp_path / "both"), both)
    scored_checked_and_evaluated(world, str(tmp_path / "both"), tmp_path / "out of both")
    bare = replace(tiled, roi="")  # the model brings its masks
    grown = fit.fit(world.inventory, bare, SLOTS, nothing, read_model(str(tmp_path / "model")))
    assert grown.masks == model.masks
    before, after = (card.products["washer"].counts.images for card in (model.card, grown.card))
    assert after == 2 * before


@pytest.mark.slow
def test_a_fit_whose_worker_dies_in_a_merge_goes_on_from_the_picks_it_noted(
    world, tmp_path, monkeypatch
):
    diary = tmp_path / "diary"

    def deadly(config):
        DeadlyCheckpoint.diary = diary
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "DetectorCheckpoint", DeadlyCheckpoint)
            worker.program(config)

    monkeypatch.setattr(fit, "program", deadly)
    model = fit.fit(world.inventory, request(), SLOTS, nothing)
    told = [line.split() for line in diary.read_text().splitlines()]
    processes = dict.fromkeys(process for _, process, _ in told)
    assert len(processes) == 2
    fabric, washer = (
        [(process, int(picks)) for product, process, picks in told if product == name]
        for name in ("fabric", "washer")
    )
    died, took_over = processes
    assert {process for process, _ in fabric} == {died}  # finished before, and not begun again
    size = world.model.card.products["washer"].counts.bank
    noted = max(picks for process, picks in washer if process == died)
    later = [picks for process, picks in washer if process == took_over]
    assert 40 <= noted < later[0]  # a merge begun anew would first note fewer
    assert later[-1] == size
    for product, tensors in model.products.items():
        for name, expected in world.model.of_product(product).items():
            assert torch.equal(tensors[name], expected)
    assert model.card.model_id == world.model.card.model_id


@pytest.mark.slow
def test_a_model_is_grown_by_new_images_without_the_old_ones(world, tmp_path):
    tensors = {name: world.model.of_product(name) for name in world.model.card.products}
    old = Model(world.model.card, world.model.of_backbone(), tensors)
    folder = draw_archive(tmp_path / "archive", train=5, test=1)
    shutil.rmtree(folder / "fabric")
    listed = take(folder, tmp_path / "inventory.parquet")
    model = fit.fit(listed, request(), SLOTS, nothing, old)
    assert model.card.fit["grown_from"] == [old.card.model_id]
    assert model.card.products["fabric"] == old.card.products["fabric"]
    assert torch.equal(model.products["fabric"]["bank"], old.products["fabric"]["bank"])
    before, after = (card.products["washer"] for card in (old.card, model.card))
    assert after.counts.images == before.counts.images + 4
    assert after.counts.patches == before.counts.patches + 4 * 15 * 15
    bank = model.products["washer"]["bank"]
    assert after.counts.bank == len(bank) == int(0.1 * after.counts.patches)
    assert after.fit_metrics["local_r"] == pytest.approx(before.fit_metrics["radius"])
    assert len(model.card.products["washer"].calibration.scores) == 1
    write_model(str(tmp_path / "model"), model)
    assert read_model(str(tmp_path / "model")).card.model_id == model.card.model_id


def test_a_plan_says_what_the_fit_then_finds_and_refuses_what_cannot_be_held(world, monkeypatch):
    chosen, backbone = split(world.inventory, request()), Backbone(request().backbone)
    found = plan.of_fit(chosen, request(), backbone, SLOTS)
    assert found.workers == 2
    for product, card in world.model.card.products.items():
        assert found.images[product] == card.counts.images
        assert found.estimates[product].vectors == card.counts.patches
        assert found.estimates[product].kept == card.counts.bank
    assert found.held_out == world.model.card.fit["held_out"]
    plan.check(found)
    measured = rehearse_on_worker(chosen.fit, request(), found.sizes, backbone, SLOTS)
    expected = plan.minutes(found, measured)
    assert 0 < expected.extract < 5
    assert 0 < expected.fit < 5
    monkeypatch.setattr(memory, "memory_of_nodes", lambda: [2**30, 2**29])
    with pytest.raises(
        memory.NotEnoughMemory, match=r"2 workers, 1 per node, .* --patchcore\.fit_memory"
    ):
        plan.check(found)
