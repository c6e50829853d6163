"""Which images calibrate a grown model, over drawn splits."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from ops.archives.inventory import SCHEMA
from ops.detectors.model_folder import read_model, write_model
from ops.errors import UserError
from pipelines.fitting import calibration_images
from pipelines.fitting.request import DETECTOR, ROW, NothingToFit, Split
from pipelines.scoring.read_stage import CARRIED
from tests.conftest import tiny_model


def rows(*names, version="1"):
    """Rows of images named `product/name`."""
    listed = [
        {"image_id": f"{name}{version}", "uri": name, "version": version}
        | {"product": name.split("/")[0]}
        for name in names
    ]
    return pa.Table.from_pylist(listed, SCHEMA).select(list(CARRIED))


def split(fitted, calibrating):
    numbers = list(range(len(fitted)))[::-1]  # the order of reading is another one
    table = fitted.append_column(DETECTOR, fitted["product"])
    return Split(table.append_column(ROW, pa.array(numbers, pa.int64())), calibrating)


def model_with(table, **card):
    model = tiny_model("bolt")
    changed = replace(model.card, **card) if card else model.card
    return replace(model, card=changed, held_out=calibration_images.to_bytes(table))


def with_earlier(chosen, earlier):
    return calibration_images.with_earlier(chosen, earlier, calibration_images.of_model(earlier))


def uris(table):
    return table["uri"].to_pylist()


def test_earlier_images_calibrate_again_and_none_is_fitted_on_and_calibrates():
    earlier = model_with(rows("bolt/1", "bolt/2", "bolt/3", "nut/1"))
    new = split(
        rows("bolt/7", "bolt/2", "bolt/8", version="2"), rows("bolt/9", "bolt/3", version="2")
    )
    grown = with_earlier(new, earlier)
    assert uris(grown.fit) == ["bolt/7", "bolt/8"]
    assert grown.fit[ROW].to_pylist() == [1, 0]
    expected = {"bolt/1": "1", "bolt/2": "2", "bolt/9": "2", "bolt/3": "2"}
    found = grown.held_out.select(["uri", "version"]).to_pylist()
    assert {row["uri"]: row["version"] for row in found} == expected
    assert len(found) == 4
    # The file of the new model also has those of products that stay as they are.
    again = calibration_images.of_model(
        replace(earlier, held_out=calibration_images.kept(grown, earlier))
    )
    assert sorted(uris(again)) == ["bolt/1", "bolt/2", "bolt/3", "bolt/9", "nut/1"]


@pytest.mark.parametrize("images", [1, 10, 150])
def test_growing_by_any_number_of_images_never_calibrates_on_fewer(images):
    earlier = model_with(rows(*(f"bolt/{i}" for i in range(75))))
    new = split(rows(*(f"bolt/new{i}" for i in range(images))), rows())
    assert len(with_earlier(new, earlier).held_out) == 75


def test_products_without_anything_new_to_fit_stay_as_they_are():
    earlier = model_with(rows("bolt/1", "nut/1"))
    grown = with_earlier(split(rows("bolt/2", "nut/1"), rows("nut/5")), earlier)
    assert (uris(grown.fit), uris(grown.held_out)) == (["bolt/2"], ["bolt/1"])
    with pytest.raises(NothingToFit, match="add other images"):
        with_earlier(split(rows("nut/1"), rows()), earlier)


def test_a_joint_model_calibrates_all_products_again():
    joint = {"bolt": replace(tiny_model("bolt").card.products["bolt"], file="_joint.safetensors")}
    earlier = model_with(rows("bolt/1", "nut/1"), products=joint)
    grown = with_earlier(split(rows("bolt/2"), rows()), earlier)
    assert uris(grown.held_out) == ["bolt/1", "nut/1"]


def test_the_images_lie_in_the_model_folder_and_a_damaged_file_is_told(tmp_path):
    location = str(tmp_path / "model")
    write_model(location, model_with(rows("bolt/1")))
    model = read_model(location)
    assert uris(calibration_images.of_model(model)) == ["bolt/1"]
    with pytest.raises(UserError, match=r"held-out images of model .* cannot be read"):
        calibration_images.of_model(replace(model, held_out=b"damaged"))
    chosen = split(rows("bolt/2"), rows("bolt/3"))
    assert with_earlier(chosen, replace(model, held_out=b"")) is chosen


def of_parts(*names):
    """Rows of images named `product/part/view`."""
    listed = [
        {"image_id": name, "uri": name, "version": "1"}
        | dict(zip(("product", "part", "view"), name.split("/"), strict=True))
        for name in names
    ]
    return pa.Table.from_pylist(listed, SCHEMA).select(list(CARRIED))


def test_a_part_of_which_an_image_calibrates_is_not_fitted_on():
    """Another view of the part may have come later."""
    earlier = model_with(of_parts("bolt/1/top", "nut/2/top"))
    new = split(of_parts("bolt/1/side", "bolt/2/side", "nut/1/side"), of_parts("bolt/3/side"))
    grown = with_earlier(new, earlier)
    assert uris(grown.fit) == ["bolt/2/side", "nut/1/side"]
    expected = ["bolt/1/side", "bolt/1/top", "bolt/3/side", "nut/2/top"]
    assert sorted(uris(grown.held_out)) == expected


def test_all_views_of_a_product_calibrate_its_parts_again():
    """Also those whose detectors stay as they are; else parts would be judged without them."""
    before = of_parts("bolt/1/side", "bolt/1/top", "nut/1/side")
    earlier = model_with(before, views="separate")
    fitted = of_parts("bolt/2/top", "bolt/1/top")
    at = fitted.schema.get_field_index("product")
    names = pa.array(["bolt/top", "bolt/top"])
    grown = with_earlier(
        split(fitted.set_column(at, "product", names), of_parts("bolt/3/top")), earlier
    )
    assert uris(grown.fit) == ["bolt/2/top"]
    assert grown.fit["product"].to_pylist() == ["bolt/top"]
    expected = ["bolt/1/side", "bolt/1/top", "bolt/3/top"]
    assert sorted(uris(grown.held_out)) == expected
    assert set(grown.held_out["product"].to_pylist()) == {"bolt"}
    again = calibration_images.of_model(
        replace(earlier, held_out=calibration_images.kept(grown, earlier))
    )
    assert sorted(uris(again)) == [*expected, "nut/1/side"]
