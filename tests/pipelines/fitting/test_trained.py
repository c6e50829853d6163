"""A trained detector on a cluster: two workers, a worker that dies, few shots, joint fits."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from ops.detectors.detector import Checkpoint
from ops.detectors.differnet import DifferNetSettings
from ops.detectors.image_batches import to_images
from ops.detectors.model_folder import read_model, write_model
from ops.detectors.registry import detector_class
from ops.detectors.ssnf import SsnfSettings
from ops.distributed import Alone
from ops.features.backbone import Backbone, BackboneSettings
from ops.images.read_images import Read
from ops.images.resize import InputSettings
from ops.storage.paths import JOINT
from pipelines.cluster.resources import Resources
from pipelines.fitting import fit, plan, worker
from pipelines.fitting.calibrate import HeldOutScores
from pipelines.fitting.rehearsal import rehearse_on_worker
from pipelines.fitting.request import FitRequest, NothingToFit, Select, split
from pipelines.fitting.worker import DetectorCheckpoint
from tests.pipelines.scored_archive import nothing, take

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SLOTS = Resources(workers=2, cpus=1, reader_cpus=1, batch=4)
SETTINGS = DifferNetSettings(
    blocks=2,
    hidden=16,
    scales=2,
    views=6,
    epochs=6,
    batch=4,
    score_transforms=4,
    standardise=True,
)


def request(**changes):
    values = {
        "method": "differnet",
        "settings": SETTINGS,
        "backbone": BackboneSettings("squeezenet1_1", "features.3,features.6", "random"),
        "input": InputSettings(64),
        "holdout": 0.2,
        "joint": True,
        "select": Select(shots=5),
    }
    return FitRequest(**values | changes)


@pytest.fixture(scope="module")
def inventory(cluster, archive, tmp_path_factory):
    return take(archive, tmp_path_factory.mktemp("inventory") / "inventory.parquet")


class DeadlyCheckpoint(DetectorCheckpoint):
    """Kills its process when it has saved three epochs, unless the fit was resumed."""

    def write(self, content):
        super().write(content)
        assert len(self.read()["curve"]) == len(content["curve"])  # so the coordinator has it
        if len(content["curve"]) == 3:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(inventory, tmp_path_factory):
    """A model fitted by two workers of which the first is killed after three epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "program", _deadly)
        fitted = fit.fit(inventory, request(), SLOTS, nothing)
    location = tmp_path_factory.mktemp("models") / "model"
    write_model(str(location), fitted)
    return location


@pytest.fixture(scope="module")
def model(folder):
    return read_model(str(folder))


def _deadly(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "DetectorCheckpoint", DeadlyCheckpoint)
        worker.program(config)


def alone(inventory, requested):
    """The same fit in one process that nobody disturbs."""
    chosen = split(inventory, requested)
    detector = detector_class(requested.method)(requested.settings, Backbone(requested.backbone))
    images = to_images(
        Read(requested.input, requested.decode, requested.fetch)(chosen.fit), requested.input, "cpu"
    )
    detector.add_images(images, torch.arange(len(images)))
    fitted = detector.fit(Alone(), nothing, Checkpoint())
    return detector, fitted


def test_two_workers_of_which_one_died_train_what_one_process_trains(model, inventory):
    detector, fitted = alone(inventory, request())
    card = model.card.products["washer"]
    assert card.curves["loss"] == pytest.approx(fitted.curves["loss"], rel=1e-3)
    assert len(card.curves["loss"]) == 6
    assert card.counts.images == 10
    for name, tensor in detector.state().items():
        result = model.products["washer"][name]
        torch.testing.assert_close(result, tensor, rtol=1e-3, atol=1e-3 * float(tensor.abs().max()))


def test_synthetic_defects_are_the_same_whichever_worker_makes_them(inventory, tmp_path):
    settings = SsnfSettings(blocks=2, hidden=4, heads=1, epochs=3, batch=4, max_nll=1e9)
    requested = request(method="ssnf", settings=settings, holdout=0.0)
    result = fit.fit(inventory, requested, SLOTS, nothing)
    detector, fitted = alone(inventory, requested)
    card = result.card.products["washer"]
    assert card.curves["loss"] == pytest.approx(fitted.curves["loss"], rel=1e-3)
    assert card.fit_metrics["pushed"] == fitted.fit_metrics["pushed"] > 0
    for name, tensor in detector.state().items():
        bound = 1e-3 * float(tensor.abs().max())
        torch.testing.assert_close(result.products["washer"][name], tensor, rtol=1e-3, atol=bound)
    write_model(str(tmp_path / "model"), result)
    sheet = tmp_path / "model" / "_joint.synthetic.png"
    assert sheet.read_bytes() == fitted.pictures["synthetic"]


def test_products_share_one_detector_and_have_calibrations_of_their_own(model):
    cards = model.card.products
    assert set(cards) == {"fabric", "washer"}
    assert {card.file for card in cards.values()} == {JOINT}
    assert model.products["fabric"] is model.products["washer"]
    assert cards["fabric"].calibration != cards["washer"].calibration
    assert all(len(card.calibration.scores) == 2 for card in cards.values())
    assert all(min(card.calibration.scores) > 0 for card in cards.values())


@pytest.mark.parametrize("product", ["fabric", "washer"])
def test_the_held_out_images_of_each_product_lie_with_the_model_as_a_picture(folder, product):
    with Image.open(folder / f"{product}.held-out.png") as sheet:
        assert sheet.size == (2 * 128, 2 * 128)
        columns = [np.asarray(sheet.crop((x, 0, x + 128, 128))) for x in (0, 128)]
    assert all(column.std() > 5 for column in columns)
    assert not np.array_equal(*columns)


def test_a_plan_of_a_joint_fit_counts_one_detector(inventory):
    chosen, backbone = split(inventory, request()), Backbone(request().backbone)
    result = plan.of_fit(chosen, request(), backbone, SLOTS)
    assert result.images == {"all products": 10}
    measured = rehearse_on_worker(chosen.fit, request(), result.sizes, backbone, SLOTS)
    expected = plan.minutes(result, measured)
    assert 0 < expected.fit < 1


def test_shots_are_drawn_by_a_seed_and_never_held_out(inventory):
    def drawn(**select):
        result = split(inventory, request(select=Select(**select)))
        return result.fit["image_id"].to_pylist(), result.held_out["image_id"].to_pylist()

    one, held_out = drawn(shots=5, seed=1)
    assert drawn(shots=5, seed=1) == (one, held_out)
    other, same = drawn(shots=5, seed=2)
    assert same == held_out
    assert set(other) != set(one)
    assert len(one) == 2 * 5
    assert not set(one) & set(held_out)
    assert len(drawn(shots=3, products=["washer"])[0]) == 3
    everything, _ = drawn(shots=100)
    assert len(everything) == len(drawn()[0]) == 2 * 7


def test_what_cannot_grow_is_refused_with_a_sentence(model, inventory):
    with pytest.raises(NothingToFit, match="differnet cannot grow a model; fit a new one"):
        fit.fit(inventory, request(), SLOTS, nothing, model)


def test_the_sketches_of_the_highest_scores_are_kept():
    image = {"product": "bolt", "part": None}
    size = image | {"width": 8, "height": 6, "map_largest": 0.5}
    kept = HeldOutScores()
    for number in (3, 1, 7, 5, 2, 6, 4, 0):
        kept.add(
            size | {"score": number / 10, "image_id": "a", "sketch": bytes([number])},
            keep_sketch=True,
        )
    large = image | {"width": 80, "height": 60, "map_largest": 2.5}
    kept.add(large | {"score": 0.7, "image_id": "b", "sketch": b"b"}, keep_sketch=True)
    assert kept.sizes == {"8x6": 8, "80x60": 1}
    assert kept.sketches == [bytes([7]), b"b", *(bytes([n]) for n in (6, 5, 4, 3))]
    assert len(kept.scores) == 9
    assert kept.peaks == [*[0.5] * 8, 2.5]
    assert kept.units == [*"a" * 8, "b"]
    without = HeldOutScores()
    without.add(size | {"score": 1.0, "image_id": "a", "sketch": b"a"}, keep_sketch=False)
    assert (without.scores, without.sketches) == ([1.0], [])
