"""What jobs.inventory says: no Ray."""

from __future__ import annotations

import pytest

from jobs import inventory
from jobs.cli.sources import Listing
from ops.errors import SettingError


def test_parts_in_two_splits_are_told(tmp_path, capsys):
    for name in ("train/good/7_top", "test/good/7_side", "test/good/8_top"):
        (tmp_path / "bolt" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bolt" / f"{name}.png").write_bytes(b"1")
    words = ["--archive", str(tmp_path / "bolt"), "--output", str(tmp_path / "i.parquet")]
    pattern = "{split}/{defect}/{part}_{view}.png"
    assert inventory.main([*words, "--pattern", pattern]) == 0
    said = capsys.readouterr()
    assert (
        "warning: parts with images both in the split to fit on and in another: 1;"
        in said.out + said.err
    )
    assert inventory.main([*words, "--pattern", "{split}/{defect}/{name}"]) == 0
    said = capsys.readouterr()
    assert "parts with images" not in said.out + said.err


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -0.1, 1.5])
def test_a_share_that_is_none_is_refused_before_anything_is_listed(share):
    with pytest.raises(SettingError, match=f"train_share {share} must lie between 0 and 1"):
        Listing("parts", train_share=share).path_parser()
