"""The benchmark of hold-outs, on drawn parts of several images."""

from __future__ import annotations

import shutil

from tests.bench import holdout
from tests.conftest import draw_archive


def test_photographs_of_a_part_count_once_or_each(tmp_path, capsys):
    draw_archive(tmp_path / "drawn", train=10, test=1, size=64)
    product = next(p for p in sorted((tmp_path / "drawn").iterdir()) if p.is_dir())
    for number, file in enumerate(sorted((product / "train" / "good").iterdir())):
        for view in ("a", "b", "c"):
            target = tmp_path / "parts" / "train" / "good" / f"{number}_{view}{file.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    words = ["--data", str(tmp_path / "parts"), "--pattern", "{split}/{defect}/{part}_{view}.*"]
    words += ["--weights", "random", "--preset", "patchcore-squeezenet", "--draws", "2"]
    assert holdout.main([*words, "--rates", "0.2", "--", "--input.size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "counts" in line]
    # 2 of 10 parts are tested; of the other 24 images 5 calibrate, or of the 8 parts 2.
    assert [row[:4] for row in rows] == [
        ["images, each counts", "5", "20.0%", "16.7%"],
        ["parts, each image counts", "6", "20.0%", "14.3%"],
        ["parts, each counts once", "2", "20.0%", "33.3%"],
    ]
    assert all("±" in row[4] for row in rows)
