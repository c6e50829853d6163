import dataclasses
import json

import pytest

from ops.detectors.model_folder import Model, read_card, read_model, write_model
from ops.detectors.network_licence import given_licence, network_card, read_licence
from ops.errors import UserError
from ops.features.configuration import Configuration
from ops.storage import paths
from ops.storage.storage_errors import NotFound
from tests.conftest import tiny_model

TERMS = "You may not…\r\n".encode()
DINO3 = Configuration("timm", "1.0.31", size=256, weights="lvd1689m", licence="dinov3-license")


@pytest.fixture
def licensed() -> Model:
    model = tiny_model("part")
    card = dataclasses.replace(model.card, network=network_card(DINO3, TERMS))
    return dataclasses.replace(model, card=card, licence=TERMS)


def test_a_model_folder_carries_the_licence_and_so_does_its_copy(licensed, tmp_path):
    one, copy = tmp_path / "one", tmp_path / "copy"
    write_model(str(one), licensed)
    assert (one / paths.LICENCE).read_bytes() == TERMS
    write_model(str(copy), read_model(str(one)))
    assert (copy / paths.LICENCE).read_bytes() == TERMS
    assert read_card(str(copy)).model_id == licensed.card.model_id


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_licence_that_is_not_the_one_of_the_card_is_refused(licensed, tmp_path, damage):
    write_model(str(tmp_path), licensed)
    file = tmp_path / paths.LICENCE
    file.unlink() if damage == "gone" else file.write_text("Do as you like")
    with pytest.raises(UserError, match=paths.LICENCE):
        read_model(str(tmp_path))


def test_the_card_says_what_the_library_says(licensed, tmp_path):
    write_model(str(tmp_path), licensed)
    network = json.loads((tmp_path / paths.MODEL_CARD).read_text())["network"]
    assert network.pop("licence_sha256") == read_card(str(tmp_path)).network["licence_sha256"]
    assert network == {
        "library": "timm",
        "version": "1.0.31",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": 256,
        "weights": "lvd1689m",
        "licence": "dinov3-license",
    }


def test_a_model_without_a_licence_has_no_file_of_it(tmp_path):
    write_model(str(tmp_path), tiny_model("part"))
    assert not (tmp_path / paths.LICENCE).exists()
    assert read_licence(str(tmp_path), {}) == read_model(str(tmp_path)).licence == b""


def test_a_fit_refuses_a_licence_that_is_empty_or_missing(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match=r"is empty; --backbone.licence takes the text"):
        given_licence(str(tmp_path / "empty"))
    with pytest.raises(NotFound, match="missing"):
        given_licence(str(tmp_path / "missing"))
    assert given_licence("") == b""
