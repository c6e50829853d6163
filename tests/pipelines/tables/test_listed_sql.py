"""Parts and splits of a whole listing: no Ray, real files."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import replace

import pytest

from ops.archives.layouts import LAYOUTS, Layout
from tests.archives import tar
from tests.conftest import DATA
from tests.pipelines.tables.test_take_inventory import take


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1")


def rows_of(folder, layout, out):
    return take([folder], out / "i.parquet", layout)[1].to_pylist()


def test_exposures_of_a_magnetic_tile_are_one_part_which_is_fitted_on_or_tested(tmp_path):
    tiles = tmp_path / "tiles"
    for start in range(0, 60_000, 1000):
        # Six exposures of a tile; every tenth tile has a defect that shows in one of them.
        for exposure in range(1, 7):
            kind = "Crack" if start % 10_000 == 0 and exposure == 3 else "Free"
            stem = f"MT_{kind}/Imgs/exp{exposure}_num_{start + 25 * exposure}"
            touch(tiles, f"{stem}.jpg", f"{stem}.png")
    rows = rows_of(tiles, LAYOUTS["mtd"], tmp_path)
    assert Counter(Counter(row["part"] for row in rows).values()) == {6: 60}
    first = next(row for row in rows if row["uri"].endswith("exp6_num_5150.jpg"))
    assert first["part"] == "5025"
    assert first["fields"] == [("exposure", "6"), ("number", "5150")]
    assert {row["uri"][-3:] for row in rows} == {"jpg"}
    assert sum(row["mask_uri"] is not None for row in rows) == 6
    splits = {}
    for row in rows:
        splits.setdefault(row["part"], set()).add(row["split"])
    assert {len(of_part) for of_part in splits.values()} == {1}
    defective = {row["part"] for row in rows if row["label"]}
    assert len(defective) == 6
    assert all(splits[part] == {"test"} for part in defective)
    good = [part for part in splits if part not in defective]
    train = sum(splits[part] == {"train"} for part in good)
    assert train == pytest.approx(0.8 * 54, abs=12)  # four standard deviations


def test_the_part_of_a_tile_does_not_depend_on_its_mask_or_on_the_split_list(tmp_path):
    names = [f"exp{n}_num_{n}00" for n in (1, 2, 4)]
    touch(
        tmp_path / "t", *(f"MT_Free/Imgs/{name}.{end}" for name in names for end in ("jpg", "png"))
    )
    layout = replace(LAYOUTS["mtd"], train_names=frozenset({"exp2_num_200.jpg"}))
    tally, table = take([tmp_path / "t"], tmp_path / "i.parquet", layout)
    # 200 - 100 <= 160 < 400 - 200; masks have the same numbers, and are no neighbours of images.
    assert table.select(["part", "split"]).to_pylist() == [
        {"part": "100", "split": "test"},
        {"part": "100", "split": "train"},
        {"part": "400", "split": "test"},
    ]
    assert tally.shared_parts == 1


def test_numbers_that_are_none_or_too_large_belong_to_no_part(tmp_path):
    words = ["007", "x7", "9" * 30, "5.6", "1e3", "0x10", "+8", " 9", "true", "٣", f"-{2**63 - 1}"]
    touch(tmp_path / "t", *(f"MT_Free/Imgs/exp1_num_{word}.jpg" for word in [*words, "9" * 18]))
    rows = rows_of(tmp_path / "t", LAYOUTS["mtd"], tmp_path)
    assert {row["fields"][1][1]: row["part"] for row in rows} == {
        **dict.fromkeys(words),
        "007": "7",
        "9" * 18: "9" * 18,
    }
    assert {row["split"] for row in rows} <= {"train", "test"}


def test_a_split_by_share_takes_good_images_and_is_fixed_by_their_names(tmp_path):
    layout = Layout("{defect}/{name}", train_share=0.8)
    names = [f"{number}.png" for number in range(2000)]
    for folder in (tmp_path / "a", tmp_path / "b"):
        touch(folder, *(f"good/{name}" for name in names), *(f"bent/{n}.png" for n in range(50)))
    first, again = (rows_of(tmp_path / x, layout, tmp_path) for x in "ab")
    splits = [(row["uri"].rpartition("/")[2], row["split"]) for row in first]
    assert splits == [(row["uri"].rpartition("/")[2], row["split"]) for row in again]
    train = [row for row in first if row["split"] == "train"]
    assert len(train) == pytest.approx(1600, abs=80)  # 4.5 standard deviations
    assert {row["label"] for row in train} == {0}


def test_images_of_unknown_label_are_in_no_split_to_fit_on(tmp_path):
    touch(tmp_path / "p", *(f"{number}.png" for number in range(20)))
    rows = rows_of(tmp_path / "p", Layout("**/{name}", train_share=0.9), tmp_path)
    assert [row["split"] for row in rows] == ["test"] * 20


def test_copies_of_names_in_other_forms_and_containers_have_one_split(tmp_path):
    layout = Layout("{defect}/{name}", train_share=0.5)
    odd = ["a'b", 'a"b', "a#b", "a%23b", "a?b", "a\nb", "$listed", "{x}", " "]
    names = [*(f"ü{number}.png" for number in range(30)), *(f"{name}.png" for name in odd)]
    members = [(f"good/{unicodedata.normalize('NFD', name)}", b"1") for name in names]
    (tmp_path / "t.tar").write_bytes(tar(members))
    touch(tmp_path / "folder", *(f"good/{name}" for name in names))
    splits = [
        {
            unicodedata.normalize("NFC", row["uri"].rpartition("/")[2]): row["split"]
            for row in rows_of(tmp_path / place, layout, tmp_path)
        }
        for place in ("folder", "t.tar")
    ]
    assert splits[0] == splits[1]
    assert len(splits[0]) == 39
    assert Counter(splits[0].values())["train"] == pytest.approx(19.5, abs=13)


def test_a_part_that_lies_in_several_containers_has_one_split(tmp_path):
    layout = Layout("{defect}/{part}_{view}.png", train_share=0.5)
    parts = [f"ü{number}" for number in range(30)]
    touch(tmp_path / "a", *(f"good/{part}_a.png" for part in parts))
    members = [(f"good/{unicodedata.normalize('NFD', part)}_b.png", b"1") for part in parts]
    (tmp_path / "b.tar").write_bytes(tar(members))
    touch(tmp_path / "c", *(f"bent/{part}_c.png" for part in parts[:5]))
    places = [tmp_path / "a", tmp_path / "b.tar", tmp_path / "c"]
    tally, table = take(places, tmp_path / "i.parquet", layout)
    splits = {}
    for row in table.to_pylist():
        splits.setdefault(row["part"], set()).add(row["split"])
    assert len(splits) == 30
    assert {len(of_part) for of_part in splits.values()} == {1}
    assert all(splits[part] == {"test"} for part in parts[:5])
    assert tally.shared_parts == 0
    _, train = take(places, tmp_path / "i.parquet", layout, split="train")
    assert set(train["part"].to_pylist()) == {p for p in parts if splits[p] == {"train"}}


def test_a_split_by_share_keeps_the_views_of_a_part_together(tmp_path):
    layout = Layout("{defect}/{part}_{view}.png", train_share=0.5)
    parts = {f"{n:03}": "bent" if n < 20 else "good" for n in range(100)}
    for part, kind in parts.items():
        # Of a defective part only one view shows the defect.
        touch(tmp_path / "p", f"{kind}/{part}_top.png", f"good/{part}_side.png")
    rows = rows_of(tmp_path / "p", layout, tmp_path)
    splits = {}
    for row in rows:
        splits.setdefault(row["part"], []).append(row["split"])
    assert all(len(both) == 2 and len(set(both)) == 1 for both in splits.values())
    assert {splits[part][0] for part, kind in parts.items() if kind == "bent"} == {"test"}
    train = sum(splits[part][0] == "train" for part, kind in parts.items() if kind == "good")
    assert train == pytest.approx(40, abs=18)  # four standard deviations


def test_paths_that_name_their_split_or_do_not_match_keep_it(tmp_path):
    touch(tmp_path / "p", "bolt/train/good/1.png", "bolt/holdout/good/2.png", "3.png")
    layout = Layout("{product}/{split}/{defect}/{name}", train_share=0.5)
    rows = rows_of(tmp_path / "p", layout, tmp_path)
    assert [row["split"] for row in rows] == ["holdout", "train", None]


def test_only_parts_between_fitting_and_other_splits_are_counted_as_shared(tmp_path):
    layout = Layout("{product}/{split}/{defect}/{part}_{view}.png")
    touch(
        tmp_path / "p",
        *(f"bolt/train/good/{part}_1.png" for part in "abc"),
        "bolt/validation/good/a_2.png",  # held out beside images of its part, but not tested
        "bolt/test/good/b_2.png",
        "nut/test/good/c_2.png",  # a part of another product
        "nut/test/good/d_2.png",
        "nut/validation/good/e_1.png",  # no image of its part is fitted on
        "nut/test/good/e_2.png",
    )
    tally, _ = take([tmp_path / "p"], tmp_path / "i.parquet", layout)
    assert tally.shared_parts == 1


@pytest.mark.skipif(not DATA.exists(), reason="the magnetic tile images are not at hand")
def test_the_authors_split_of_the_magnetic_tiles_shares_tiles_and_ours_does_not(tmp_path):
    tally, table = take([DATA / "mtd"], tmp_path / "i.parquet", LAYOUTS["mtd"])
    assert len(set(table["part"].to_pylist())) == 210
    assert tally.shared_parts == 0
    names = frozenset((DATA / "mtd" / "train_names.txt").read_text().split())
    layout = replace(LAYOUTS["mtd"], train_names=names)
    assert take([DATA / "mtd"], tmp_path / "a.parquet", layout)[0].shared_parts == 113
