"""Records of runs, and what becomes of them when tables, records or maps are lost."""

from __future__ import annotations

import re

import pytest

from ops.errors import UserError
from ops.storage import files
from ops.storage.paths import Out
from pipelines.cluster.shared_model import SharedModel
from pipelines.scoring import verify
from pipelines.scoring.resume import finished_totals, resume_or_start
from pipelines.scoring.violations import RunUnderCheck
from pipelines.tables import current_scores, run_records
from pipelines.tables.retention import expire
from tests.runs import Part, finish, model_of

PARTS = [Part(f"{i}.png", "bolt", float(i)) for i in range(3)]
MODEL = model_of(["bolt"])
STRAY = (
    *(".DS_Store", "Thumbs.db", "desktop.ini", "._2026-11-20-a.json", ".2026-11-20-a.json.swp"),
    *("2026-11-20-a.json~", "#2026-11-20-a.json#", "2026-11-20-a.json.bak", "notes.txt"),
    *("folder.json/2026-11-20-a.json", ".2026.json"),
)


@pytest.fixture
def out(tmp_path):
    return Out(str(tmp_path))


def cut(table):
    files.write_bytes(table, files.read_bytes(table)[:-100])


def empty(table):
    files.write_bytes(table, b"")


@pytest.mark.parametrize("damage", [files.remove_file, empty, cut])
def test_a_run_without_its_whole_table_is_not_finished(out, damage):
    run = finish(out.root, PARTS, MODEL)
    assert finished_totals(run)["images"] == 3
    table = out.table(run.night, run.run_id)
    damage(table)
    again = resume_or_start(run.inventory, run.model, out, run.settings, run.night)
    assert again.run_id == run.run_id
    assert finished_totals(again) is None
    with pytest.raises(UserError, match=rf"the table of run {run.run_id} is lost or damaged"):
        run_records.finished(out, run.run_id)
    assert run_records.recorded(out, run.run_id)["totals"]["images"] == 3
    assert run_records.recorded(out)["run_id"] == run.run_id


def test_the_latest_run_is_one_that_has_its_table_and_the_other_is_named(out, monkeypatch):
    first = finish(out.root, PARTS, MODEL, "2026-11-20")
    second = finish(out.root, PARTS, MODEL, "2026-11-21")
    assert run_records.finished(out)["run_id"] == second.run_id
    files.remove_file(out.table(second.night, second.run_id))
    warnings = []
    monkeypatch.setattr(
        run_records.log, "warning", lambda text, *more: warnings.append(text % more)
    )
    assert run_records.finished(out)["run_id"] == first.run_id
    [warning] = warnings
    assert warning.startswith(f"run {second.run_id} is left out: its table")
    assert run_records.recorded(out)["run_id"] == second.run_id


def test_a_lost_record_leaves_the_scores_current_and_the_run_can_be_scored_again(out):
    run = finish(out.root, PARTS, MODEL)
    files.remove_file(out.run(run.run_id))
    assert len(current_scores.current(out, MODEL.card.model_id)) == 3
    again = resume_or_start(
        run.inventory, SharedModel(MODEL.card, None, {}), out, run.settings, run.night
    )
    assert finished_totals(again) is None
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        run_records.finished(out)


@pytest.mark.parametrize("damage", [empty, cut])
def test_a_damaged_table_is_named_with_its_remedy(out, damage):
    run = finish(out.root, PARTS, MODEL)
    table = out.table(run.night, run.run_id)
    damage(table)
    with pytest.raises(
        UserError, match=rf"{table} is damaged .*restore it from a backup, or move it away"
    ):
        current_scores.current(out, MODEL.card.model_id)


def test_a_run_whose_rows_have_all_expired_stays_finished(out):
    first = finish(out.root, PARTS, MODEL, "2026-11-20")
    finish(out.root, PARTS, MODEL, "2026-11-21")
    expire(out, 1, [], remove=True)
    assert len(current_scores.published(out)) == 1
    assert finished_totals(first)["images"] == 3
    assert run_records.finished(out, first.run_id)["expired"]["rows"] == 0


def test_readers_of_a_run_learn_that_its_rows_go_while_they_read(out):
    first = finish(out.root, PARTS, MODEL, "2026-11-20")
    second = finish(out.root, PARTS, MODEL, "2026-11-21")
    records = [run_records.finished(out, run.run_id) for run in (first, second)]
    with run_records.unexpired(out, *records):
        pass
    told = rf"jobs.expire removed rows of run {first.run_id} .* Choose a run with all its rows"

    def read_late():
        expire(out, 1, [], remove=True)
        files.read_bytes(out.table(first.night, first.run_id))  # NotFound, which says less

    with pytest.raises(UserError, match=told), run_records.unexpired(out, *records):
        read_late()
    with pytest.raises(UserError, match=told), run_records.unexpired(out, *records[1:], records[0]):
        pass


def test_a_check_beside_expire_has_one_finding(out):
    first = finish(out.root, PARTS, MODEL, "2026-11-20")
    finish(out.root, PARTS, MODEL, "2026-11-21")
    record = run_records.finished(out, first.run_id)
    expire(out, 1, [], remove=True)
    subject = RunUnderCheck(out, first.run_id, record, first.inventory.location, MODEL.card)
    findings = verify.check(subject, 1.0, lambda *_: None)
    assert list(findings.violations) == ["the run's table is complete"]


def test_stray_files_among_records_are_left_alone(out):
    run = finish(out.root, PARTS, MODEL, "2026-11-20")
    files.write_json(out.night("00000001-2026-11-20T01-00-00"), {"night": "2026-11-20"})
    for place in (out.runs(), out.nights()):
        for name in STRAY:
            files.write_bytes(files.join(place, name), b"\x00\xff")
    assert [record["run_id"] for record in run_records.started(out)] == [run.run_id]
    assert run_records.finished(out)["run_id"] == run.run_id
    assert run_records.last_night(out) == {"night": "2026-11-20"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not valid JSON"),
        (b'{"run_id": "x', "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"\x00" * 4096, "is not valid JSON"),
        (b"[]", "it is not the record of a run"),
        (b"{}", "it is not the record of a run"),
        (b'{"run_id": "2026-11-20-a", "number": 1, "started": "s"}', "it is the record of run "),
    ],
)
def test_a_file_that_is_no_record_is_named_with_a_remedy(out, content, why):
    finish(out.root, PARTS, MODEL, "2026-11-20")
    place = out.run("2026-11-22-c")
    files.write_bytes(place, content)
    told = f"^{re.escape(place)}.*{why}.*restore it from a backup, or move it away"
    with pytest.raises(UserError, match=told):
        run_records.finished(out)
    with pytest.raises(UserError, match=told):
        run_records.finished(out, "2026-11-22-c")


def test_a_night_that_is_no_record_is_named(out):
    files.write_bytes(out.night("00000001-2026-11-21T01-00-00"), b"5")
    with pytest.raises(UserError, match=r"T01-00-00\.json is not the record of a night"):
        run_records.last_night(out)


def test_stray_files_among_tables_are_left_alone(out):
    run = finish(out.root, PARTS, MODEL, "2026-11-20")
    folder = out.table(run.night, run.run_id).rpartition("/")[0]
    for name in ("._part-00000.parquet", "part-00000.parquet~", "part-1 (1).parquet", ".DS_Store"):
        files.write_bytes(files.join(folder, name), b"x")
    files.write_bytes(files.join(out.scores(), ".DS_Store"), b"x")
    assert len(current_scores.current(out, MODEL.card.model_id)) == 3
