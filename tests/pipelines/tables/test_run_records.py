"""Records beside stray files, and records that are none."""

from __future__ import annotations

import re

import pytest

from ops.errors import UserError
from ops.storage import files
from ops.storage.paths import Out
from pipelines.tables import current_scores, run_records
from tests.pipelines.tables.test_current_scores import MODELS, publish, row

STRAY = (
    *(".DS_Store", "Thumbs.db", "desktop.ini", "._2026-11-20-a.json", ".2026-11-20-a.json.swp"),
    *("2026-11-20-a.json~", "#2026-11-20-a.json#", "2026-11-20-a.json.bak", "notes.txt"),
    *("folder.json/2026-11-20-a.json", ".2026.json"),
)


@pytest.fixture
def out(tmp_path):
    """An output folder with a finished run and an unfinished one."""
    out = Out(str(tmp_path))
    for run_id, totals in (("2026-11-20-a", {"images": 1}), ("2026-11-21-b", None)):
        record = {"run_id": run_id, "model_id": "m", "started": run_id, "night": run_id[:10]}
        files.write_json(out.run(run_id), record | ({"totals": totals} if totals else {}))
    files.write_json(out.night("2026-11-20T01:00:00Z"), {"night": "2026-11-20"})
    return out


def test_stray_files_among_records_are_left_alone(out):
    for place in (out.runs(), out.nights()):
        for name in STRAY:
            files.write_bytes(files.join(place, name), b"\x00\xff")
    assert [record["run_id"] for record in run_records.every(out)] == [
        "2026-11-20-a",
        "2026-11-21-b",
    ]
    assert run_records.finished(out)["run_id"] == "2026-11-20-a"
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
        (
            b'{"run_id": "2026-11-20-a", "model_id": "m", "started": "s"}',
            "it is the record of run ",
        ),
    ],
)
def test_a_file_that_is_no_record_is_named_with_a_remedy(out, content, why):
    place = out.run("2026-11-22-c")
    files.write_bytes(place, content)
    told = f"^{re.escape(place)}.*{why}.*restore it from a backup, or move it away"
    with pytest.raises(UserError, match=told):
        run_records.finished(out)
    with pytest.raises(UserError, match=told):
        run_records.finished(out, "2026-11-22-c")


def test_a_night_that_is_no_record_is_named(out):
    files.write_bytes(out.night("2026-11-21T01:00:00Z"), b"5")
    with pytest.raises(UserError, match=r"T01:00:00Z\.json is not the record of a night"):
        run_records.last_night(out)


def test_stray_files_among_tables_are_left_alone(tmp_path):
    out = Out(str(tmp_path))
    run_id = publish(out, 0, [row("u/1")])
    folder = out.table(run_id[:10], run_id).rpartition("/")[0]
    for name in ("._part-00000.parquet", "part-00000.parquet~", "part-1 (1).parquet", ".DS_Store"):
        files.write_bytes(files.join(folder, name), b"x")
    files.write_bytes(files.join(out.scores(), ".DS_Store"), b"x")
    assert current_scores.current(out, MODELS[0])["uri"].to_pylist() == ["u/1"]
