"""The draw of the campaign, and how it judges; its nights are `python -m tests.faults world`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.faults.world import FAULTS, Case, Ending, _end, cases


def test_a_draw_has_as_many_of_each_kind_and_is_the_same_for_a_seed():
    drawn = cases(20, 1)
    assert drawn == cases(20, 1) != cases(20, 2)
    counts = sorted([case.kind for case in drawn].count(kind) for kind in FAULTS)
    assert counts == [3, 3, 3, 3, 4, 4]


def ended(tmp_path, code: int, said: str) -> tuple[str, list[str]]:
    out, ending = tmp_path / "out", Ending(Case("space", 0, 0.5))
    Path(f"{out}.log").write_text(said)
    job = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
    return _end(job, out, ending, "the night"), ending.wrong


def test_a_night_ends_with_a_table_or_a_sentence_and_never_with_a_traceback(tmp_path):
    assert ended(tmp_path, 0, "table: here") == ("finished", [])
    assert ended(tmp_path, 1, "x\nerror: no space") == ("exit 1 (no space)", [])
    assert ended(tmp_path, 1, "x")[1] == ["the night ended with 1 and no sentence"]
    assert ended(tmp_path, 1, "Traceback (most\nerror: x")[1] == ["the night showed a traceback"]
