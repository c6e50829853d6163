"""The masks of a fit: which files they come from, and what is refused before anything is fitted."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ops.detectors.model_folder import read_model, write_model
from ops.detectors.patchcore import PatchCoreSettings
from ops.errors import SettingError, UserError
from ops.features.backbone import BackboneSettings
from ops.images.inspection import InspectionMask
from ops.images.inspection_files import hashes
from ops.images.resize import InputSettings
from ops.storage import uris
from pipelines.fitting.inspection import masks_of
from pipelines.fitting.request import DETECTOR, FitRequest, Split
from tests import pictures
from tests.conftest import tiny_model

LEFT = np.tile(np.arange(40) < 20, (30, 1))
TOP = np.tile(np.arange(60)[:, None] < 20, (1, 80))


def request(**values: object) -> FitRequest:
    return FitRequest(
        "patchcore", PatchCoreSettings(), BackboneSettings(), InputSettings(64), **values
    )


def chosen(folder, *products: str, size: tuple[int, int] = (80, 60), broken: int = 0) -> Split:
    """Three pictures of each product; `broken` of them cannot be read."""
    rows = []
    for product in products:
        for number in range(3):
            place = folder / f"{len(rows)}.png"
            drawn = np.random.default_rng(number).integers(0, 256, size[::-1]).astype(np.uint8)
            place.write_bytes(b"none" if number < broken else pictures.encoded(drawn))
            rows.append({"uri": uris.make(str(place)), "product": product, DETECTOR: product})
    kinds = {"bytes": pa.int64(), "member": pa.int64()}
    names = ["uri", "bytes", "version", "member", "product", "view", "problem", DETECTOR]
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    table = pa.Table.from_pylist(rows, schema)
    return Split(table, table.slice(0, 0))


def put(place, mask: np.ndarray) -> str:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(pictures.encoded(mask.astype(np.uint8) * 255))
    return str(place)


def test_masks_lie_where_the_pattern_says(tmp_path):
    put(tmp_path / "masks/nut.png", LEFT)
    put(tmp_path / "masks/bolt.png", ~LEFT)
    asked = request(roi=f"{tmp_path}/masks/{{product}}.png")
    found = masks_of(chosen(tmp_path, "nut", "bolt"), asked)
    assert np.array_equal(found.by_detector["nut"].inspected, LEFT)
    assert np.array_equal(found.by_detector["bolt"].inspected, ~LEFT)
    assert sorted(found.pictures) == ["bolt.inspected.png", "nut.inspected.png"]
    with Image.open(io.BytesIO(found.pictures["nut.inspected.png"])) as drawn:
        assert drawn.size == (384, 288)
        pixels = np.asarray(drawn)
    assert pixels[100, 192].tolist()[0] > 200 > 50 > pixels[100, 192].tolist()[1]  # the outline
    assert pixels[:, :150].mean() > 2 * pixels[:, 250:].mean()


def test_without_masks_nothing_is_read(tmp_path):
    assert masks_of(chosen(tmp_path, "nut", broken=3), request()).by_detector == {}


def test_one_file_serves_all_products(tmp_path):
    asked = request(ignore=put(tmp_path / "edge.png", LEFT))
    found = masks_of(chosen(tmp_path, "nut", "bolt"), asked).by_detector
    assert found["nut"] == found["bolt"] == InspectionMask.of(~LEFT)


def test_separate_views_have_masks_of_their_own(tmp_path):
    put(tmp_path / "nut-top.png", LEFT)
    put(tmp_path / "nut-side.png", ~LEFT)
    put(tmp_path / "lid-.png", LEFT)
    asked = request(roi=f"{tmp_path}/{{product}}-{{view}}.png", views="separate")
    found = masks_of(chosen(tmp_path, "nut/top", "nut/side"), asked).by_detector
    assert np.array_equal(found["nut/top"].inspected, LEFT)
    assert np.array_equal(found["nut/side"].inspected, ~LEFT)
    with pytest.raises(UserError, match="no file can be named after the view ''"):
        masks_of(chosen(tmp_path, "lid"), asked)
    with pytest.raises(SettingError, match=r"names \{view\}, and one detector takes all views"):
        request(ignore="{view}.png")


def test_polygons_are_in_pixels_of_the_pictures(tmp_path):
    place = tmp_path / "areas.json"
    place.write_text(json.dumps({"nut": [[[0, 0], [80, 0], [80, 20], [0, 20]]]}))
    found = masks_of(chosen(tmp_path, "nut"), request(roi=str(place))).by_detector
    assert np.array_equal(found["nut"].inspected, TOP)
    with pytest.raises(UserError, match=r"areas.json, the inspection mask of 'bolt': it has pol"):
        masks_of(chosen(tmp_path, "bolt"), request(roi=str(place)))
    with pytest.raises(UserError, match=r"the corner \[80, 0\] lies outside .* has 70 x 60 px"):
        masks_of(chosen(tmp_path, "nut", size=(70, 60)), request(roi=str(place)))


def test_what_is_inspected_is_in_one_mask_and_not_in_the_other(tmp_path):
    place = tmp_path / "top.json"
    place.write_text(json.dumps([[[0, 0], [80, 0], [80, 20], [0, 20]]]))
    asked = request(roi=put(tmp_path / "left.png", LEFT), ignore=str(place))
    mask = masks_of(chosen(tmp_path, "nut"), asked).by_detector["nut"]
    assert np.array_equal(mask.inspected, np.kron(LEFT, np.ones((2, 2), bool)) & ~TOP)
    both = replace(asked, ignore=asked.roi)
    with pytest.raises(UserError, match="nothing of 'nut' is left to inspect"):
        masks_of(chosen(tmp_path, "nut"), both)


def test_a_mask_that_fits_no_picture_is_refused_and_one_that_fits_some_is_not(tmp_path):
    asked = request(roi=put(tmp_path / "left.png", LEFT))
    with pytest.raises(UserError, match=r"40 x 30 px, and a picture 80 x 70; .* within 1 %"):
        masks_of(chosen(tmp_path, "nut", size=(80, 70)), asked)
    tables = []
    for number, size in enumerate([(80, 70), (80, 60)]):
        (tmp_path / str(number)).mkdir()
        tables.append(chosen(tmp_path / str(number), "nut", size=size).fit)
    both = pa.concat_tables(tables)
    assert masks_of(Split(both, both.slice(0, 0)), asked).by_detector["nut"].share == 0.5
    spot = np.zeros((300, 400), bool)
    spot[5, 9] = True
    with pytest.raises(UserError, match="fits no picture: no pixel is left of the mask"):
        masks_of(chosen(tmp_path, "nut"), request(roi=put(tmp_path / "spot.png", spot)))


def test_missing_masks_and_pictures_are_refused(tmp_path):
    pattern = f"{tmp_path}/masks/{{product}}.png"
    with pytest.raises(FileNotFoundError, match=r"masks/nut.png is missing, the inspection mask"):
        masks_of(chosen(tmp_path, "nut"), request(roi=pattern))
    asked = request(roi=put(tmp_path / "left.png", LEFT))
    assert masks_of(chosen(tmp_path, "nut", broken=2), asked).by_detector
    with pytest.raises(UserError, match="none of 3 pictures of 'nut' can be read, so its ins"):
        masks_of(chosen(tmp_path, "nut", broken=3), asked)


@pytest.mark.parametrize("name", ["../nut", "..", "a/b", "a\\b", "/etc/passwd", ".", "n\0t"])
def test_no_name_of_a_product_leads_elsewhere(tmp_path, name):
    put(tmp_path / "nut.png", LEFT)
    with pytest.raises(UserError, match="no file can be named after the product"):
        masks_of(chosen(tmp_path, name), request(roi=f"{tmp_path}/masks/{{product}}.png"))
    place = tmp_path / "areas.json"
    place.write_text(json.dumps({name: [[[0, 0], [80, 0], [80, 20]]]}))
    assert masks_of(chosen(tmp_path, name), request(roi=str(place))).by_detector[name].share > 0.1


def test_a_name_with_braces_is_not_taken_for_a_field(tmp_path):
    put(tmp_path / "{view}.png", LEFT)
    asked = request(roi=f"{tmp_path}/{{product}}.png")
    assert masks_of(chosen(tmp_path, "{view}"), asked).by_detector


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_masks_are_refused_by_name(tmp_path, data):
    (tmp_path / "nut.png").write_bytes(data)
    with pytest.raises(UserError, match=r"nut.png, the inspection mask of 'nut': it "):
        masks_of(chosen(tmp_path, "nut"), request(roi=f"{tmp_path}/nut.png"))


def test_a_model_that_is_grown_keeps_its_masks(tmp_path):
    model = tiny_model("nut")
    masks = {"nut": InspectionMask.of(LEFT)}
    card = replace(model.card, masks=hashes(masks))
    write_model(str(tmp_path / "model"), replace(model, card=card, masks=masks))
    earlier = read_model(str(tmp_path / "model"))
    assert earlier.masks == masks
    found = masks_of(chosen(tmp_path, "nut"), request(), earlier)
    assert found.by_detector == masks
    assert list(found.pictures) == ["nut.inspected.png"]
    with pytest.raises(UserError, match="has inspection masks, and none of bolt, which it does"):
        masks_of(chosen(tmp_path, "nut", "bolt"), request(), earlier)
    with pytest.raises(UserError, match="fits no picture: its 80 x 70 px have another aspect"):
        masks_of(chosen(tmp_path, "nut", size=(80, 70)), request(), earlier)
    assert masks_of(chosen(tmp_path, "bolt"), request(), model).by_detector == {}
