"""The benchmark of nights, decisions and growing, on a drawn product."""

from __future__ import annotations

import shutil

import pytest

from tests.bench import loop
from tests.conftest import draw_archive


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def share(cell):
    return float(cell.split("%")[0])


def test_models_start_alike_and_only_the_rule_of_a_tenth_calibrates_on_false_alarms(
    tmp_path, capsys
):
    draw_archive(tmp_path, train=14, test=4, size=64)
    product = next(path for path in sorted(tmp_path.iterdir()) if path.is_dir())
    shutil.rmtree(product / "ground_truth")
    words = ["--data", str(product), "--pattern", "{split}/{defect}/{name}", "--weights", "random"]
    words += [
        "--preset",
        "patchcore-squeezenet",
        "--good",
        "8",
        "--rate",
        "0.3",
        "--draws",
        "2",
        "--holdout",
        "0.25",
    ]
    words += ["--nights", "2", "--grow", "1", "4", "--", "--input.size", "64"]
    assert loop.main(words) == 0
    rows = [row for row in cells(capsys.readouterr().out) if row[0].isdigit()]
    nights, grown = rows[:6], rows[6:]
    assert [row[:2] for row in nights] == [
        [night, name] for name in loop.MODELS for night in ("1", "2")
    ]
    firsts = [row[2:] for row in nights if row[0] == "1"]
    assert firsts[0] == firsts[1] == firsts[2]
    # 2 held-out images promise 1 of 3; all of the grown model are still these 2.
    assert [row[2:4] for row in nights[:4]] == [["2", "33.3%"]] * 4
    assert all(0 <= share(cell) <= 100 for row in nights for cell in row[4:])
    assert [row[:3] for row in grown] == [
        ["0", "2", "33.3%"], ["1", "2", "33.3%"], ["4", "3", "25.0%"]
    ]  # fmt: skip


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(SystemExit, match="nowhere is no folder; --data takes"):
        loop.main(["--data", "nowhere"])
