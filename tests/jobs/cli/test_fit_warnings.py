from __future__ import annotations

import pyarrow as pa
import pytest

from jobs.cli.fit_warnings import FitWarnings, unlabelled
from ops.archives.inventory import SCHEMA, Inventory
from ops.storage import parquet


def inventory(tmp_path, *rows):
    names = ("label", "split", "problem")
    listed = [
        {"image_id": str(i), "uri": f"u/{i}", **dict(zip(names, row, strict=True))}
        for i, row in enumerate(rows)
    ]
    path = str(tmp_path / "listed.parquet")
    parquet.write(path, SCHEMA, [pa.Table.from_pylist(listed, SCHEMA)])
    return Inventory(path)


@pytest.mark.parametrize(
    ("rows", "images"),
    [
        ([(None, None, None)] * 40, 40),
        ([(None, None, None), (None, None, "cut off")], 1),
        ([(None, "train", None), (None, "train", None), (0, "test", None), (None, None, None)], 2),
        ([(None, None, None), (0, None, None)], 0),
        ([(1, None, None)], 0),
        ([(None, None, "cut off")], 0),
    ],
)
def test_images_without_any_label_are_counted_as_good(tmp_path, rows, images):
    sentence = unlabelled(inventory(tmp_path, *rows))
    assert sentence.startswith(f"no labels: all {images} images count as good.") == bool(images)
    assert bool(sentence) == bool(images)


def test_warnings_are_shown_and_kept(capsys):
    warnings = FitWarnings()
    warnings.add("")
    warnings.add("one")
    assert (warnings.sentences, capsys.readouterr().out) == (["one"], "warning: one\n")


def test_sentences_of_a_fit_are_kept_if_they_are_warnings(capsys):
    warnings = FitWarnings()
    warnings.say("input: 224 x 224")
    warnings.say("warning: two")
    assert warnings.sentences == ["two"]
    assert capsys.readouterr().out == "input: 224 x 224\nwarning: two\n"
