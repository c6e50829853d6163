import dataclasses
import json
import unicodedata

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ops.detectors.detector import Checkpoint, FitCounts
from ops.detectors.model_card import ModelCard, ProductCard, identity
from ops.detectors.model_folder import Model, read_card, read_model, write_model
from ops.detectors.model_tensors import read_detectors
from ops.detectors.patchcore import PatchCore, PatchCoreSettings
from ops.distributed import Alone
from ops.errors import UserError
from ops.features.weights import fingerprint
from ops.images.decode import DecodeSettings
from ops.images.inspection import InspectionMask
from ops.images.inspection_files import hashes
from ops.images.resize import InputSettings
from ops.results.anomaly_map import Scale
from ops.results.calibration import Calibration
from ops.results.part_calibration import PartCalibration
from ops.storage import files, paths
from tests.conftest import tiny_model
from tests.ops.conftest import TINY

PRODUCTS = ("nut", "../bolt #1%")
SETTINGS = PatchCoreSettings(dim=24, projection=0, coreset_ratio=0.1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def fitted(images, backbone) -> dict[str, PatchCore]:
    detectors = {name: PatchCore(SETTINGS, backbone) for name in PRODUCTS}
    for number, detector in enumerate(detectors.values()):
        detector.add_images(images[number : number + 1], torch.tensor([0]))
        detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detectors


@pytest.fixture(scope="module")
def model(fitted) -> Model:
    backbone = next(iter(fitted.values())).backbone
    states = {name: detector.state() for name, detector in fitted.items()}
    card = ModelCard(
        method="patchcore",
        settings=dataclasses.asdict(SETTINGS),
        backbone=TINY,
        backbone_sha256=backbone.fingerprint(),
        input=InputSettings(size=64),
        decode=DecodeSettings(bit_depth=12),
        products={
            name: ProductCard(
                paths.product_file(name),
                fingerprint(state),
                FitCounts(1, patches=64, bank=6),
                {"radius": 0.1 + 0.2},
                Calibration.of([0.3, 0.1, 1 / 3]),
            )
            for name, state in states.items()
        },
        map_scale=Scale(0.0, 1e-4 / 3),
        false_alarm_rate=0.01,
        fit={"seed": 0},
        versions={"torch": "1"},
    )
    return Model(card, backbone.state(), states)


@pytest.fixture
def folder(model, tmp_path) -> str:
    location = str(tmp_path / "model")
    write_model(location, model)
    return location


def test_a_model_that_was_read_back_scores_the_same_bits(model, folder, fitted, images):
    result = read_model(folder)
    assert result.card == model.card
    backbone = result.card.new_backbone(result.backbone)
    for name, state in result.products.items():
        scores = result.card.new_detector(state, backbone).score(images)
        expected = fitted[name].score(images)
        assert torch.equal(scores.image, expected.image)
        assert torch.equal(scores.map, expected.map)


def test_nothing_of_it_lies_elsewhere(folder, tmp_path):
    listed = {item.name for item in files.listing(str(tmp_path))}
    names = {paths.MODEL_CARD, paths.BACKBONE, *map(paths.product_file, PRODUCTS)}
    assert listed == {f"model/{name}" for name in names}


def test_the_id_follows_the_content(model):
    card = model.card
    assert card.model_id == ModelCard.from_json(json.loads(json.dumps(card.to_json()))).model_id
    changes = [
        {"settings": card.settings | {"coreset_ratio": 0.2}},
        {"input": InputSettings(size=65)},
        {"decode": DecodeSettings()},
        {"backbone_sha256": "0"},
        {"false_alarm_rate": 0.02},
        {"map_scale": Scale(0.0, 2e-4)},
        {"products": {"nut": card.products["nut"]}},
        {"backbone": dataclasses.replace(TINY, layers="features.3")},
        {"versions": {"torch": "2"}},
    ]
    ids = {dataclasses.replace(card, **change).model_id for change in changes}
    assert len(ids | {card.model_id}) == len(changes) + 1


def test_the_id_of_the_same_content_does_not_depend_on_the_order_of_its_products(model):
    turned = dict(reversed(model.card.products.items()))
    assert dataclasses.replace(model.card, products=turned).model_id == model.card.model_id


def test_writing_it_again_changes_nothing_and_another_one_is_refused(model, folder):
    before = {item.name: item.version for item in files.listing(folder)}
    write_model(folder, model)
    other = dataclasses.replace(model, card=dataclasses.replace(model.card, false_alarm_rate=0.5))
    with pytest.raises(FileExistsError, match="another model lies at"):
        write_model(folder, other)
    assert {item.name: item.version for item in files.listing(folder)} == before


def test_pictures_lie_beside_the_tensors_and_change_neither_model_nor_id(model, tmp_path):
    file = paths.picture_file(model.card.products["../bolt #1%"].file, "synthetic")
    location = str(tmp_path / "model")
    write_model(location, dataclasses.replace(model, pictures={file: b"PNG"}))
    assert (tmp_path / "model" / "%2E.%2Fbolt %231%25.synthetic.png").read_bytes() == b"PNG"
    read = read_model(location)
    assert read.card == model.card
    assert read.card.model_id == model.card.model_id


def test_model_json_is_written_last(model, tmp_path, monkeypatch):
    written, write = [], files.write_bytes
    monkeypatch.setattr(
        files, "write_bytes", lambda at, data: (written.append(at), write(at, data))
    )
    write_model(str(tmp_path), model)
    assert len(written) == 4
    assert written[-1].endswith("/model.json")


def test_a_model_that_was_not_finished_does_not_exist(model, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files, "write_json", fails)
    with pytest.raises(OSError, match="disk full"):
        write_model(str(tmp_path), model)
    with pytest.raises(FileNotFoundError, match="no complete model"):
        read_model(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["settings", "neighbours"], 3),
        (["false_alarm_rate"], 0.5),
        (["products", "nut", "calibration", "scores"], [0.0]),
        (["products", "nut", "sha256"], "0" * 64),
        (["model_id"], "0" * 32),
    ],
)
def test_a_card_that_was_changed_is_refused(folder, path, value):
    file = files.join(folder, paths.MODEL_CARD)
    content = inner = files.read_json(file)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    files.write_json(file, content)
    with pytest.raises(UserError, match="was changed after it was written"):
        read_card(folder)


def test_a_setting_that_this_version_does_not_know_is_refused_with_the_known(folder):
    file = files.join(folder, paths.MODEL_CARD)
    content = files.read_json(file)
    content["input"]["sise"] = 1
    files.write_json(file, content)
    with pytest.raises(UserError, match=r"unknown settings \['sise'\].*'size'"):
        read_card(folder)


@pytest.mark.parametrize("file", ["../nut.safetensors", "/etc/passwd", "model.json", "x", ""])
def test_a_card_that_names_files_of_others_is_refused_even_under_its_own_id(folder, file):
    place = files.join(folder, paths.MODEL_CARD)
    content = files.read_json(place)
    content["products"][PRODUCTS[0]]["file"] = file
    content["model_id"] = identity(content)
    files.write_json(place, content)
    with pytest.raises(UserError, match="names files that belong to no product"):
        read_model(folder)


def test_another_format_is_refused(folder):
    file = files.join(folder, paths.MODEL_CARD)
    files.write_json(file, files.read_json(file) | {"format": "nightloupe model 9"})
    with pytest.raises(UserError, match="nightloupe model 9"):
        read_card(folder)


@pytest.mark.parametrize("name", [paths.BACKBONE, paths.product_file(PRODUCTS[1])])
def test_tensors_that_were_changed_are_refused(folder, name):
    file = files.join(folder, name)
    tensors = load_file(file)
    key = max(tensors, key=lambda k: tensors[k].numel())
    tensors[key].view(-1)[0] += 1
    save_file(tensors, file)
    with pytest.raises(UserError, match="does not hold the tensors"):
        read_model(folder)


def test_a_damaged_file_of_tensors_is_refused(folder):
    file = files.join(folder, paths.BACKBONE)
    whole = files.read_bytes(file)
    header = int.from_bytes(whole[:8], "little")
    damaged = [
        *(b"", whole[:100], whole[:-1], b"\xff" * 100, b"\xff" * 8 + whole[8:]),
        *(whole[:8] + b"[" * header + whole[8 + header :], whole + b"x"),
    ]
    for data in damaged:
        files.write_bytes(file, data)
        with pytest.raises(UserError, match="is damaged: it is not a safetensors file"):
            read_model(folder)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "\x00" * 100, "[" * 100_000, "\udcff", "null", "[]", "5", '"x"', "{}"),
        *('{"format": 7}', '{"format": "nightloupe model 1"}'),
        '{"format": "nightloupe model 1", "products": []}',
        '{"format": "nightloupe model 1", "products": {"nut": 5}}',
    ],
)
def test_a_card_of_no_form_that_is_known_is_refused_with_a_remedy(folder, content):
    file = files.join(folder, paths.MODEL_CARD)
    files.write_bytes(file, content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"model\.json.*(restore it from a backup|fit the model)"):
        read_card(folder)


def test_a_card_without_a_value_is_refused(folder):
    file = files.join(folder, paths.MODEL_CARD)
    whole = files.read_json(file)
    needed = [name for name in whole if name not in {"versions"}]
    for name in needed:
        files.write_json(file, {key: value for key, value in whole.items() if key != name})
        with pytest.raises(UserError, match=r"model\.json"):
            read_card(folder)
        for value in (None, 5, [], [1], "x", {"x": 1}):
            files.write_json(file, whole | {name: value})
            with pytest.raises(UserError, match=r"model\.json|unknown settings"):
                read_card(folder)


def test_tensors_of_another_product_are_refused(folder):
    tensors = [files.join(folder, paths.product_file(name)) for name in PRODUCTS]
    files.write_bytes(tensors[0], files.read_bytes(tensors[1]))
    with pytest.raises(UserError, match="does not hold the tensors"):
        read_model(folder)


def test_where_there_is_no_model_the_error_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"make one with python -m jobs\.fit"):
        read_card(str(tmp_path))


def test_a_model_written_before_a_setting_existed_is_read_with_its_default_and_its_id(folder):
    place = files.join(folder, paths.MODEL_CARD)
    content = files.read_json(place)
    del content["decode"]["max_pixels"], content["input"]["exposure"]
    del content["settings"]["metric"], content["settings"]["shrinkage"]
    content["model_id"] = identity(content)
    files.write_json(place, content)
    card = read_card(folder)
    assert card.decode.max_pixels == DecodeSettings().max_pixels
    assert card.input.exposure == "as_is"
    assert card.model_id == content["model_id"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_product_of_an_older_model_has_one_name_whatever_its_form(tmp_path, form):
    name = unicodedata.normalize(form, "T\u00fcr")
    location = str(tmp_path / form)
    write_model(location, written := tiny_model(name))
    found = read_model(location)
    assert list(found.card.products) == ["T\u00fcr"] == list(found.products)
    assert found.card.model_id == written.card.model_id
    assert found.card.products["T\u00fcr"].file == paths.product_file(name)


def test_a_card_of_pooled_views_and_no_parts_is_written_as_before_there_were_any(model):
    content = model.card.to_json()
    assert not {"views", "parts"} & set(content)
    assert ModelCard.from_json(content) == model.card


def test_views_and_held_out_parts_travel_in_the_card(model, tmp_path):
    known = PartCalibration(("side", "top"), ((1.0, None), (0.1, 2.5)), standardised=True)
    products = {f"{name}/top": card for name, card in model.card.products.items() if name == "nut"}
    file = paths.product_file("nut/top")
    products = {name: dataclasses.replace(card, file=file) for name, card in products.items()}
    card = dataclasses.replace(
        model.card, products=products, views="separate", parts={"nut": known}
    )
    states = {"nut/top": model.products["nut"]}
    write_model(str(tmp_path), dataclasses.replace(model, card=card, products=states))
    read = read_card(str(tmp_path))
    assert (read.views, read.parts) == ("separate", {"nut": known})
    assert read.model_id == card.model_id != model.card.model_id
    assert [found for found, _ in read_detectors(str(tmp_path), read, ["nut"])] == [file]
    assert list(read_detectors(str(tmp_path), read, ["bolt"])) == []


def test_masks_are_part_of_the_model_and_of_its_id(model, tmp_path):
    masks = {name: InspectionMask.of(np.eye(9, dtype=bool)) for name in PRODUCTS}
    card = dataclasses.replace(model.card, masks=hashes(masks))
    other = hashes(masks) | {"nut": InspectionMask.of(np.ones((9, 9), bool)).sha256}
    ids = {c.model_id for c in (model.card, card, dataclasses.replace(card, masks=other))}
    assert len(ids) == 3
    assert "masks" not in model.card.to_json()  # so models without masks keep their ids
    location = str(tmp_path / "model")
    write_model(location, dataclasses.replace(model, card=card, masks=masks))
    assert read_model(location).masks == masks
    assert read_card(location) == card
    assert (tmp_path / "model" / "%2E.%2Fbolt %231%25.mask.png").exists()
    (tmp_path / "model" / "nut.mask.png").write_bytes(InspectionMask.of(np.ones((9, 9), bool)).png)
    with pytest.raises(UserError, match=r"nut\.mask\.png is not the inspection mask"):
        read_model(location)


@pytest.mark.parametrize("name", ["../nut", "/etc/passwd", "washer"])
def test_a_card_with_masks_of_no_product_is_refused_even_under_its_own_id(folder, name):
    place = files.join(folder, paths.MODEL_CARD)
    content = files.read_json(place) | {"masks": {name: "0" * 64}}
    content["model_id"] = identity(content)
    files.write_json(place, content)
    with pytest.raises(UserError, match="names masks of no product"):
        read_model(folder)
