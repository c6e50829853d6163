import pytest

from ops.archives import split_lists
from ops.archives.layouts import FRAMES, LAYOUTS, Layout, PathParser, compile_pattern
from ops.archives.split_lists import SplitLists
from ops.errors import UserError
from tests.conftest import DATA

MTD = DATA / "mtd"


def read(pattern: str, path: str) -> dict[str, str] | None:
    match = compile_pattern(pattern).fullmatch(path)
    return match.groupdict() if match else None


def test_a_pattern_reads_its_fields():
    found = read("{product}/{split}/{defect}/{name}", "nut/test/bent/001.png")
    assert found == {"product": "nut", "split": "test", "defect": "bent", "name": "001.png"}


def test_a_field_stays_within_one_folder():
    assert read("{product}/{name}", "a/b/c.png") is None


def test_two_stars_span_any_number_of_folders():
    for path in ("a/c.png", "a/x/c.png", "a/x/y/c.png"):
        assert read("{product}/**/{name}", path) == {"product": "a", "name": "c.png"}


def test_the_stem_ends_before_the_last_suffix():
    assert read("{stem}.*", "a.b.png") == {"stem": "a.b"}


def test_other_characters_match_literally():
    assert read("(x)+/{name}", "(x)+/1.png") == {"name": "1.png"}
    assert read("a.b/{name}", "aXb/1.png") is None
    assert read("{product}/{name}", "new\nline/1.png") == {"product": "new\nline", "name": "1.png"}


@pytest.mark.parametrize("pattern", ["{product", "product}/x", "{}/x"])
def test_a_lone_brace_is_refused_with_the_known_fields(pattern):
    with pytest.raises(UserError, match=r"meaning: \{product\}, \{split\}, \{label\}, \{defect\}"):
        compile_pattern(pattern)


@pytest.mark.parametrize("name", ["1st", "_x", "l\u00e4nge", "\u0661"])
def test_names_of_fields_are_plain(name):
    with pytest.raises(UserError, match="letters a to z, digits and _, and start with a letter"):
        compile_pattern(f"{{{name}}}/{{stem}}.*")


@pytest.mark.parametrize(("name", "meant"), [("prodcut", "product"), ("parts", "part")])
def test_a_misspelt_field_is_no_field_of_its_own(name, meant):
    with pytest.raises(UserError, match=rf"did you mean \{{{meant}\}}\?"):
        compile_pattern(f"{{{name}}}/{{stem}}.*")


def test_other_fields_are_kept_by_name_and_join_masks():
    layout = Layout("{line}/{product}/{shift_2}/{name}", masks="{line}/masks/{product}-{stem}.png")
    path_parser = PathParser(layout, "p")
    parsed = path_parser("A/bolt/late 2/1.jpg")
    assert parsed.fields == {"line": "A", "shift_2": "late 2"}
    assert list(parsed.fields) == sorted(parsed.fields)
    assert (parsed.product, parsed.part) == ("bolt", None)
    assert parsed.mask_key == path_parser("A/masks/bolt-1.png").mask_key
    assert parsed.mask_key != path_parser("B/masks/bolt-1.png").mask_key
    assert PathParser(Layout("{product}/{name}"), "p")("bolt/1.png").fields is None


def test_a_repeated_field_is_refused():
    with pytest.raises(UserError, match=r"\{product\} occurs twice"):
        compile_pattern("{product}/{product}/{name}")


def test_mvtec_good_and_defective():
    path_parser = PathParser(LAYOUTS["mvtec"], "unused")
    good = path_parser("bottle/train/good/000.png")
    bad = path_parser("bottle/test/broken_large/013.png")
    assert good[:5] == ("bottle", "train", 0, "good", False)
    assert bad[:5] == ("bottle", "test", 1, "broken_large", False)


def test_mvtec_masks_join_their_image_and_no_other():
    path_parser = PathParser(LAYOUTS["mvtec"], "unused")
    mask = path_parser("bottle/ground_truth/broken_large/013_mask.png")
    assert mask.is_mask
    assert mask.mask_key == path_parser("bottle/test/broken_large/013.png").mask_key
    others = ["bottle/test/broken_small/013.png", "cable/test/broken_large/013.png"]
    assert mask.mask_key not in {path_parser(other).mask_key for other in others}


def test_mtd_labels_and_masks():
    path_parser = PathParser(LAYOUTS["mtd"], "unused")
    good, bad = (
        path_parser(f"MT_{kind}_num_20.jpg") for kind in ("Free/Imgs/exp1", "Crack/Imgs/exp2")
    )
    assert (good.product, good.label, bad.product, bad.label) == ("mtd", 0, "mtd", 1)
    assert bad.fields == {"exposure": "2", "number": "20"}
    mask = path_parser("MT_Crack/Imgs/exp2_num_20.png")
    assert mask.is_mask
    assert mask.mask_key == bad.mask_key


def test_a_name_field_joins_a_mask_with_a_stem():
    layout = Layout("{defect}/{name}", masks="masks/{defect}/{stem}.png")
    path_parser = PathParser(layout, "p")
    assert path_parser("bent/1.jpg").mask_key == path_parser("masks/bent/1.png").mask_key


def test_a_path_that_does_not_match_has_no_fields():
    found = PathParser(LAYOUTS["mvtec"], "p")("readme.txt")
    assert found == (None, None, None, None, False, None, False, "", None, None, None)


def test_a_path_names_a_part_and_a_view_and_a_mask_may_follow_them():
    layout = Layout(
        "{product}/{part}/{view}.png", masks="{product}/{part}/{view}_mask.png", product=None
    )
    path_parser = PathParser(layout, "p")
    found = path_parser("bolt/0017/top.png")
    assert (found.product, found.part, found.view) == ("bolt", "0017", "top")
    assert found.mask_key == path_parser("bolt/0017/top_mask.png").mask_key
    assert path_parser("bolt/0017/side.png").mask_key != found.mask_key


def test_without_a_product_field_the_given_product_is_used():
    assert PathParser(Layout("{defect}/{name}"), "nut")("good/1.png").product == "nut"
    assert PathParser(Layout("**/{name}"), "nut")("1.png").label is None


@pytest.mark.parametrize("word", ["good", "OK", "Free", "normal", "0"])
def test_words_for_good(word):
    assert PathParser(Layout("{label}/{name}"), "p")(f"{word}/1.png").label == 0
    assert PathParser(Layout("{label}/{name}"), "p")(f"not {word}/1.png").label == 1


def test_a_list_of_names_decides_the_split():
    layout = Layout("{defect}/{name}", train_names=frozenset({"1.png"}))
    path_parser = PathParser(layout, "p")
    assert [path_parser(f"good/{n}.png").split for n in (1, 2)] == ["train", "test"]


def test_a_list_may_name_paths_and_may_be_a_table():
    table = "image,mask,split\na/1.png,,train\nb/1.png,,test\na/2.png,,Training\n"
    path_parser = PathParser(
        Layout("{product}/{name}", train_names=split_lists.read(table).train), "p"
    )
    names = ("a/1.png", "b/1.png", "a/2.png", "b/2.png")
    assert [path_parser(name).split for name in names] == ["train", "test", "train", "test"]
    assert split_lists.read(" 1.png \n\n2.png\n") == SplitLists(frozenset({"1.png", "2.png"}))


def test_a_list_of_both_splits_leaves_out_what_it_does_not_name():
    lists = split_lists.union(
        split_lists.read(f'{{"train": [{{"image_path": "OK/{n}.png"}}], "test": [{test}]}}')
        for n, test in ((1, '{"image_path": "NG/2.png"}'), (3, ""))
    )
    assert lists == SplitLists(frozenset({"1.png", "3.png"}), frozenset({"2.png"}))
    layout = Layout("{name}", train_names=lists.train, test_names=lists.test)
    found = [PathParser(layout, "p")(f"{n}.png") for n in range(1, 5)]
    assert [f.split for f in found] == ["train", "test", "train", None]
    assert [bool(f.left_out) for f in found] == [False, False, False, True]


@pytest.mark.parametrize(
    ("word", "split"),
    [("Train", "train"), ("training", "train"), ("Testing", "test"), ("VAL", "validation")],
)
def test_words_for_splits(word, split):
    assert PathParser(Layout("{split}/{name}"), "p")(f"{word}/1.png").split == split


def test_every_leaves_out_the_frames_between():
    path_parser = PathParser(Layout("{product}_{clip}/{frame}.*", every=5), "p")
    kept = [n for n in range(12) if path_parser(f"01_02/{n:03d}.jpg").left_out != FRAMES]
    assert kept == [0, 5, 10]
    assert path_parser("01_02/005.jpg").product == "01"
    assert not path_parser("01_02/5a.jpg").matched


@pytest.mark.skipif(not MTD.is_dir(), reason="the magnetic tile images are not there")
def test_the_magnetic_tiles_have_a_mask_each():
    path_parser = PathParser(LAYOUTS["mtd"], "unused")
    found = [path_parser(str(p.relative_to(MTD))) for p in MTD.rglob("*/Imgs/*")]
    images = [n for n in found if n.matched and not n.is_mask]
    masks = {n.mask_key for n in found if n.is_mask}
    assert sum(n.label == 0 for n in images) == 952
    assert sum(n.label == 1 for n in images) == 392
    assert all(n.mask_key in masks for n in images if n.label == 1)
