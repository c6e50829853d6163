"""The list of all nights, of generated nights."""

from __future__ import annotations

import re

from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports import report_index
from pipelines.scoring.run import ScoreSettings
from tests.runs import Part, finish, model_of

NONE = ScoreSettings("none", False, 100)


def rows_of(out):
    return list(report_index.nights(out, set(files.names(out.reports()))))


def test_nights_and_runs_are_listed_the_last_one_first(tmp_path):
    out, model = Out(str(tmp_path)), model_of(["bolt"])
    runs = []
    for n in range(3):
        parts = [Part(f"{n}/{i}.png", "bolt", 3.0 if i == 0 else 1.0) for i in range(4 + n)]
        parts.append(Part(f"{n}/bad.png", "bolt", None))
        runs.append(finish(out.root, parts, model, f"2026-11-2{n}", NONE))
        files.write_bytes(out.report(runs[-1].run_id), b"a report")
    files.write_bytes(out.report("2026-11-21"), b"a report of a date")
    record = files.read_json(out.run(runs[1].run_id))
    files.write_json(out.run(runs[1].run_id), record | {"warnings": ["a", "b"]})
    same = {"model_id": "4f2a" * 8, "model_name": "", "started": "2026-11-21T01:00:00+00:00"}
    for number, night in enumerate(
        (
            {"run_id": runs[0].run_id, "ended": "x"},
            {"error": "<script>no bucket\u202e", "ended": "x"},
            {"run_id": runs[1].run_id, "ended": "x"},
            {"ended": "x"},
            {"run_id": "2026-11-21-0"},  # killed
        ),
        1,
    ):
        files.write_json(out.night(f"{number:08d}-a"), same | night)
    rows = rows_of(out)
    assert [(row.night, row.images, row.note) for row in rows] == [
        ("2026-11-22", 7, ""),  # of jobs.score
        ("2026-11-21", None, "not finished"),
        ("2026-11-21", None, "no image was pending"),
        ("2026-11-21", 6, ""),
        ("2026-11-21", None, "failed: <script>no bucket\u202e"),
        ("2026-11-20", 5, ""),
    ]
    assert (rows[3].anomalous, rows[3].failed, rows[3].warnings) == (1, 1, 2)
    assert [row.report for row in rows if row.report] == [
        f"{run.run_id}.html" for run in runs[::-1]
    ]
    assert report_index.write(out) == f"{out.root}/reports/index.html"
    html = files.read_bytes(out.index()).decode()
    assert "&lt;script&gt;no bucket\\u202e" in html
    assert "<script" not in html
    links = re.findall(r'href="([^"]*)"', html)
    assert links == ["data:,", *(f"{run.run_id}.html" for run in runs[::-1]), "2026-11-21.html"]
    # A report that was removed is no longer linked, and the page over all nights is.
    files.remove_file(out.report(runs[0].run_id))
    files.write_bytes(out.trends(), b"trends")
    report_index.write(out)
    html = files.read_bytes(out.index()).decode()
    assert f"{runs[0].run_id}.html" not in html
    assert 'href="trends.html"' in html


def test_an_empty_output_folder_has_a_page(tmp_path):
    out = Out(str(tmp_path))
    report_index.write(out)
    assert b"No night has ended yet." in files.read_bytes(out.index())
