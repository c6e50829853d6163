"""An ensemble is calibrated on images that were held out of the fit of each member."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA, Inventory, image_id
from ops.detectors.detector import settings_from
from ops.detectors.ensemble import EnsembleSettings
from ops.detectors.patchcore import PatchCoreSettings
from ops.errors import UserError
from ops.results.anomaly_map import LEVELS
from ops.results.calibration import Calibration
from ops.results.combination import Position, left_out
from ops.storage import parquet, uris
from pipelines.cluster.resources import Resources
from pipelines.fitting import ensemble as making
from pipelines.fitting import hold_out
from pipelines.fitting.ensemble import EnsembleRequest, HeldOut, combined_card, held_out_images
from pipelines.fitting.request import FitRequest, Select, split
from tests.conftest import tiny_model

REQUEST = EnsembleRequest(EnsembleSettings(2.0, "smallest_p"), 0.2, FetchSettings())


def nothing(*_):
    """Nobody watches."""


def member(seed: int):
    model = tiny_model("bolt", seed)
    return replace(model, card=replace(model.card, fit={"holdout": 0.2, "images": 16}))


MEMBERS = [member(0), member(1)]
CARDS = [one.card for one in MEMBERS]


@pytest.fixture(scope="module")
def inventory(tmp_path_factory) -> Inventory:
    """20 images of the model's product, a fifth of which is held out, and some of another."""
    location = str(tmp_path_factory.mktemp("inventory") / "parts.parquet")
    names = [(f"/parts/{n:02d}.png", "bolt" if n < 20 else "nut") for n in range(30)]
    listed = [
        {"image_id": image_id(uris.make(name), "v1"), "uri": uris.make(name), "product": product}
        for name, product in names
    ]
    parquet.write(location, SCHEMA, [pa.Table.from_pylist(listed, SCHEMA)])
    return Inventory(location)


def found_in(held_out: pa.Table, seed: int):
    random = np.random.default_rng(seed)
    return {
        "bolt": {
            name: HeldOut(float(score), float(2 * score), name)
            for name, score in zip(
                held_out["image_id"].to_pylist(), random.random(len(held_out)), strict=True
            )
        }
    }


def calibrated_on(model, found):
    scores = tuple(sorted(image.score for image in found["bolt"].values()))
    product = model.card.products["bolt"]
    product = replace(product, calibration=replace(product.calibration, scores=scores))
    return replace(model, card=replace(model.card, products={"bolt": product}))


def test_the_images_are_those_that_a_fit_of_the_member_holds_out(inventory):
    found = held_out_images(inventory, CARDS[0])
    request = FitRequest(
        "patchcore", settings_from(PatchCoreSettings, {}), CARDS[0].backbone,
        select=Select(["bolt"], shots=3, seed=7), holdout=0.2,
    )  # fmt: skip
    assert (
        found["image_id"].to_pylist() == split(inventory, request).held_out["image_id"].to_pylist()
    )
    assert len(found) == 4


def test_an_ensemble_is_calibrated_on_images_left_out_in_turn(inventory, monkeypatch):
    held_out = held_out_images(inventory, CARDS[0])
    said = [found_in(held_out, seed) for seed in (0, 1)]
    members = [calibrated_on(*pair) for pair in zip(MEMBERS, said, strict=True)]
    answers = iter(said)
    monkeypatch.setattr(making, "_scored", lambda *_: next(answers))
    given = {}

    def calibrate(model, rows, fetch, resources, progress, scores):
        given["scores"] = scores
        return model

    monkeypatch.setattr(making, "calibrate", calibrate)
    model = making.ensemble(members, inventory, REQUEST, Resources(), nothing)
    each = [np.array([image.score for image in one["bolt"].values()]) for one in said]
    expected = left_out(each, range(4), "smallest_p")
    assert given["scores"] == dict(zip(said[0]["bolt"], expected.tolist(), strict=True))
    card = model.card
    assert (card.method, card.settings) == ("ensemble", {"sigma": 2.0, "combine": "smallest_p"})
    assert card.fit == {"holdout": 0.2, "images": 16, "held_out": 4, "failed": 0, "failures": []}
    assert [one.model_id for one in card.members] == [one.card.model_id for one in members]
    peaks = [Position.of(np.sort(2 * scores)) for scores in each]
    assert card.products["bolt"].member_peaks == tuple(peaks)
    offset = np.mean([-p.centre / p.spread for p in peaks])
    assert card.map_scale.offset == pytest.approx(offset, rel=1e-4)
    top = np.mean([(0.001 * (LEVELS - 1) - p.centre) / p.spread for p in peaks])
    assert card.map_scale.scale * (LEVELS - 1) == pytest.approx(top - offset, rel=0.05)


def test_an_image_that_one_member_cannot_score_is_left_out(inventory):
    said = [found_in(held_out_images(inventory, CARDS[0]), seed) for seed in (0, 1)]
    missing = next(iter(said[1]["bolt"]))
    del said[1]["bolt"][missing]
    card, scores = combined_card(CARDS, said, REQUEST)
    assert scores.keys() == said[0]["bolt"].keys() - {missing}
    assert card.fit["held_out"] == 3


def test_members_of_other_held_out_images_are_refused(inventory):
    held_out = held_out_images(inventory, CARDS[0])
    said = found_in(held_out, 0)
    same = calibrated_on(MEMBERS[0], said).card
    making.check_counts([same], held_out)
    making.check_scores(1, same, said)
    rounded = {k: image._replace(score=image.score * 1.0001) for k, image in said["bolt"].items()}
    making.check_scores(1, same, {"bolt": rounded})
    with pytest.raises(UserError, match="member 2 was calibrated on other images of 'bolt'"):
        making.check_scores(2, same, found_in(held_out, 1))
    rounded.popitem()
    with pytest.raises(UserError, match="fit all members with the same --inventory, --holdout"):
        making.check_scores(2, same, {"bolt": rounded})
    with pytest.raises(UserError, match="on 4 held-out images, or parts, of 'bolt', and 3 are"):
        making.check_counts([same], held_out.slice(1))
    with pytest.raises(UserError, match="on 0 held-out images, or parts, of 'bolt', and 4"):
        making.check_counts([calibrated_on(MEMBERS[0], {"bolt": {}}).card], held_out)


def test_a_product_whose_held_out_scores_do_not_spread_is_named(inventory):
    said = found_in(held_out_images(inventory, CARDS[0]), 0)
    flat = {"bolt": {k: image._replace(score=1.0) for k, image in said["bolt"].items()}}
    with pytest.raises(UserError, match="product 'bolt': 3 held-out images do not spread"):
        combined_card(CARDS, [said, flat], REQUEST)


def test_members_that_were_calibrated_by_part_are_checked_by_part(inventory):
    held_out = held_out_images(inventory, CARDS[0])
    parts = pa.array(["1", "1", "2", None], pa.string())
    at = held_out.schema.get_field_index("part")
    of_parts = held_out.set_column(at, "part", parts)
    units = [hold_out.unit_of(row) for row in of_parts.to_pylist()]
    images = zip(found_in(of_parts, 0)["bolt"].items(), units, strict=True)
    said = {"bolt": {image: one._replace(unit=unit) for (image, one), unit in images}}
    scores = [image.score for image in said["bolt"].values()]
    card = CARDS[0].products["bolt"]
    products = {"bolt": replace(card, calibration=Calibration.of(scores, units))}
    by_part = replace(CARDS[0], products=products)
    assert len(products["bolt"].calibration.scores) == 3
    making.check_counts([by_part], of_parts)
    making.check_scores(1, by_part, said)
    with pytest.raises(UserError, match="on 3 held-out images, or parts, of 'bolt', and 2 are"):
        making.check_counts([by_part], of_parts.slice(0, 3))
    with pytest.raises(UserError, match="calibrated on other images of 'bolt'"):
        making.check_scores(1, by_part, found_in(held_out, 0))
