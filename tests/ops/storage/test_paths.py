import os

import pytest

from ops.storage import paths

PRODUCTS = [
    "bottle",
    "Bottle 12",
    "../x",
    "..",
    ".",
    "",
    "_backbone",
    "_x",
    "%5Fx",
    "%5Fbackbone",
    "a/b",
    "a%2Fb",
    "a\\b",
    "/etc/passwd",
    "a\0b",
    "new\nline",
    "部品",
    "model.json",
    "é",
    "e\u0301",
    ".hidden",
    "x.safetensors",
    "X.safetensors",
    "CON",
    "con.png",
    "Nul",
    "com1",
    "console",
    "nut+1",
    "nut ",
    "nut.",
    "螺" * 28,
    "螺" * 22,
    "螺" * 5000,
    "n" * 200,
    "n" * 201,
    "n" * 202,
    "N" * 201,
    "a" * 165 + "螺" * 20,
    "a" * 166 + "螺" * 20,
    "a" * 167 + "螺" * 20,
]


@pytest.mark.parametrize("product", PRODUCTS)
def test_no_product_name_leads_out_of_the_model_folder(product, tmp_path):
    path = tmp_path / paths.product_file(product)
    path.write_bytes(b"tensors")
    assert os.listdir(tmp_path) == [paths.product_file(product)]


def test_no_two_products_share_a_file_or_overwrite_a_file_of_the_model():
    files = {paths.product_file(product) for product in PRODUCTS}
    assert len(files) == len(PRODUCTS)
    assert not files & {paths.BACKBONE, paths.MODEL_CARD}


def test_common_names_can_be_read_in_a_file_listing():
    assert paths.product_file("metal_nut 3-b") == "metal_nut 3-b.safetensors"


def test_paths_of_a_run_are_those_of_the_design():
    out = paths.Out("s3://b/out/")
    assert out.table("2026-11-20", "r1") == (
        "s3://b/out/scores/night=2026-11-20/run=r1/part-00000.parquet"
    )
    assert out.map("m", "abcd") == "s3://b/out/maps/m/ab/abcd.png"
    assert out.run("r1") == "s3://b/out/runs/r1.json"
    assert out.chunk("r1", 7) == "s3://b/out/_work/r1/part-00007.parquet"
    assert out.work() == "s3://b/out/_work"


@pytest.mark.parametrize("image_id", [*PRODUCTS, "../../../x", "/x/y", "..", "a/../../../b"])
def test_no_image_id_leaves_the_folders_of_maps(image_id):
    out = paths.Out("out")
    for place, root in ((out.map, "out/maps/m"), (out.overlay, "out/overlays/m")):
        found = place("m", image_id)
        folder, _, _ = os.path.normpath(found).rpartition("/")
        assert os.path.dirname(folder) == root or not image_id
        assert "\0" not in found


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_picture_lies_in_its_runs_own_folder(product):
    folder, _, name = paths.Out("out").picture("2026-11-20-abc", product).rpartition("/")
    assert folder == "out/evaluations/2026-11-20-abc"
    assert name.endswith(".png")


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_picture_of_a_comparison_lies_in_its_own_folder(product):
    folder, _, name = paths.Out("out").compared("r1", "r2", product).rpartition("/")
    assert folder == "out/comparisons/r1--r2/pictures"
    assert name.endswith(".png")


def test_a_comparison_of_models_lies_in_a_folder_that_no_runs_have():
    names = [paths.model_side(model) for model in ("a" * 32, "../b")]
    assert paths.Out("out").comparisons(*names) == (
        f"out/comparisons/model-{'a' * 32}--model-%2E.%2Fb"
    )


@pytest.mark.parametrize("product", PRODUCTS)
def test_no_file_name_is_too_long_for_a_file_system(product):
    for kind in (paths.HELD_OUT, paths.SYNTHETIC):
        name = paths.picture_file(paths.product_file(product), kind)
        assert name.isascii()
        assert len(name) <= 214
    assert len(paths.Out("").map("m", product)) <= 230


def test_long_names_begin_alike_and_end_in_their_hash_and_short_ones_stay():
    assert paths.file_name("n" * 200) == "n" * 200
    long, longer = paths.file_name("n" * 201), paths.file_name("n" * 202)
    assert long[:168] == longer[:168] == "n" * 167 + "+"
    assert long != longer
    assert paths.file_name(long) != long  # a product of that very name has another file
    cut = [paths.file_name("a" * count + "螺" * 20) for count in (165, 166, 167)]
    assert [name.partition("+")[0] for name in cut] == ["a" * 165, "a" * 166, "a" * 167]


def test_names_of_devices_are_escaped():
    assert paths.file_name("CON") == "%43ON"
    assert paths.file_name("com1.x") == "%63om1.x"
    assert paths.file_name("console") == "console"
