"""The nearest good places: the same distances as scoring, and places that give back the vectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ops.detectors.ensemble import METHOD
from ops.detectors.image_batches import Inspection, Tiles, inspected_images, to_images
from ops.detectors.model_folder import read_card, write_model
from ops.detectors.nearest_patches import NearestPatches
from ops.detectors.patchcore import PatchCoreSettings
from ops.errors import UserError
from ops.images.decode import decode
from ops.images.inspection import InspectionMask
from ops.images.resize import InputSettings
from ops.storage import uris
from tests import banks, pictures
from tests.conftest import tiny_model
from tests.ops.conftest import TINY

CROP = InputSettings(size=64, fit="crop", short_side=70)
EXPOSED = replace(banks.TILES, exposure="median")
WHITENED = replace(banks.SMALL, metric="whitened")
COSINE = replace(banks.SMALL, metric="cosine")
MASK = InspectionMask.of(np.arange(150) + np.zeros((90, 1)) > 40)
CASES = {
    "whole": (banks.WHOLE, banks.SMALL, None),
    "crop": (CROP, banks.SMALL, None),
    "tiles": (banks.TILES, banks.SMALL, None),
    "exposed tiles": (EXPOSED, banks.SMALL, None),
    "whitened": (banks.WHOLE, WHITENED, None),
    "cosine": (banks.WHOLE, COSINE, None),
    "mask": (banks.WHOLE, banks.SMALL, MASK),
    "mask of tiles": (banks.TILES, banks.SMALL, MASK),
}


def searched(folder: Path, model, memory: int = 2**20) -> NearestPatches:
    location = str(folder / "model")
    write_model(location, model)
    return NearestPatches(location, read_card(location), memory, threads=1)


def blob(folder: Path, x: int, y: int, seed: int = 9):
    """The row of a part with a defect, and its picture."""
    row = banks.listed(folder, seed)
    pixels = pictures.with_blob(pictures.texture(seed, 150)[:90], x, y, 5)
    place = Path(uris.parse(row["uri"][0].as_py()).location)
    Image.fromarray(pixels).save(place)
    return row, decode(place.read_bytes())


def grids(detector, row, settings, mask):
    """Vectors (tiles, rows, columns, d) and distances of a part, as it is scored."""
    pixels = banks.read(row, settings, {"bolt": mask} if mask else None)
    inspection = Inspection([mask], TINY.normalisation[0]) if mask else None
    if settings.tiled:
        parts = list(Tiles(pixels, settings, "cpu", [0], inspection).batches(1000))
        images, numbers = parts[0].images, parts[0].numbers
    elif inspection:
        images, numbers = inspected_images(pixels, settings, "cpu", [0], inspection)[0], [0]
    else:
        images, numbers = to_images(pixels, settings, "cpu"), [0]
    return detector.embed(images), detector.score(images).map, numbers


@pytest.mark.parametrize("case", CASES)
def test_distances_are_those_of_the_score_and_of_brute_force(tmp_path, case):
    settings, how, mask = CASES[case]
    model, detector = banks.model(banks.listed(tmp_path, 3, 4, 5), settings, how, mask)
    nearest = searched(tmp_path, model)
    row, picture = blob(tmp_path, 101, 33)
    found = nearest.find("bolt", picture, 101, 33, 3)
    assert found.cell.left <= 101 < found.cell.right
    assert found.cell.top <= 33 < found.cell.bottom
    vectors, distances, numbers = grids(detector, row, settings, mask)
    # The only defect: the patch is among those with the largest distances of the picture.
    (index,) = np.flatnonzero(np.isclose(distances.flatten(), found.near[0].distance, rtol=1e-5))
    assert found.near[0].distance >= float(distances.flatten().quantile(0.9))
    patch = detector.bank.whitened(vectors.flatten(1, 2)).flatten(0, 1)[index].double()
    far = (detector.bank.vectors.double() - patch).norm(dim=1)
    far = far**2 / 2 if how is COSINE else far
    expected = far.sort()
    assert [near.vector for near in found.near] == expected.indices[:3].tolist()
    rtol = 1e-3 if how is COSINE else 1e-4
    assert [n.distance for n in found.near] == pytest.approx(expected.values[:3].tolist(), rel=rtol)
    assert all(near.origin["vector"] == near.vector for near in found.near)
    assert {near.origin["image_id"] for near in found.near} <= {"3", "4", "5"}
    if settings.tiled:
        assert 0 <= numbers[index // distances[0].numel()] < 8


@pytest.mark.parametrize("settings", [banks.WHOLE, banks.TILES], ids=["whole", "tiles"])
def test_a_copy_of_a_good_picture_is_nearest_to_itself(tmp_path, settings):
    everything = PatchCoreSettings(dim=24, projection=0, coreset_ratio=1.0)
    rows = banks.listed(tmp_path, 3, 4)
    model, _ = banks.model(rows, settings, everything)
    picture = decode((tmp_path / "4.png").read_bytes())
    for x, y in ((0, 0), (75, 44), (149, 89)):
        found = searched(tmp_path, model).find("bolt", picture, x, y, 1)
        origin = found.near[0].origin
        assert found.near[0].distance == 0
        assert origin["image_id"] == "4"
        assert tuple(origin[side] for side in found.cell._fields) == found.cell


def test_a_bank_that_is_smaller_than_asked_for_and_unknown_origins(tmp_path):
    model, detector = banks.model(
        banks.listed(tmp_path, 3), banks.WHOLE, replace(banks.SMALL, max_bank_size=2)
    )
    _, picture = blob(tmp_path, 50, 50)
    nearest = searched(tmp_path, model)
    assert len(nearest.find("bolt", picture, 50, 50, 3).near) == len(detector.bank) == 2
    assert nearest.origin("bolt", 2) is None


def test_the_first_member_with_a_bank_stands_for_an_ensemble(tmp_path):
    other = tiny_model("bolt", seed=1)  # without origins
    member, _ = banks.model(banks.listed(tmp_path, 3), banks.WHOLE)
    members = (other, member)
    card = replace(other.card, method=METHOD, members=tuple(each.card for each in members))
    location = str(tmp_path / "both")
    write_model(location, replace(other, card=card, backbone={}, products={}, members=members))
    nearest = NearestPatches(location, read_card(location), 2**20, 1)
    _, picture = blob(tmp_path, 50, 50)
    assert nearest.find("bolt", picture, 50, 50, 1).near[0].origin["image_id"] == "3"


def test_a_model_without_origins_says_so(tmp_path):
    with pytest.raises(UserError, match="does not know which good pictures its bank is from"):
        searched(tmp_path, tiny_model("bolt"))


def test_tensors_that_differ_from_the_card_are_refused(tmp_path):
    model, _ = banks.model(banks.listed(tmp_path, 3), banks.WHOLE)
    nearest = searched(tmp_path, replace(model, products={"bolt": {"bank": torch.zeros(2, 24)}}))
    _, picture = blob(tmp_path, 50, 50)
    with pytest.raises(UserError, match="does not hold the tensors"):
        nearest.find("bolt", picture, 50, 50, 1)
