"""One model to a folder: a second fit is refused before it computes anything."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from jobs import fit as job
from jobs.cli import new_model, sources
from jobs.tracking.tracker import Tracker
from ops.detectors.model_folder import read_card, write_model
from ops.images.resize import InputSettings
from ops.results.calibration import Calibration
from ops.storage import files
from ops.storage.paths import Out
from pipelines.fitting import also_whole
from pipelines.fitting.picture_sizes import Detail
from pipelines.tables import decisions, lock
from tests.conftest import TINY, tiny_model
from tests.runs import Part, list_parts

TINY_MODEL = tiny_model("bolt")
MODEL = replace(
    TINY_MODEL, card=replace(TINY_MODEL.card, fit={"failures": [], "images": 3, "held_out": 1})
)
WORDS = ["--archive", "parts", "--model-folder", "model", "--name", ""]
#: The settings of the tiny model, which reserves one of ten images as a fit does by default.
SAME = [word for pair in TINY.items() for word in pair] + ["--false-alarm-rate", "0.1"]
STD = "0.229,0.224,0.225"
SAME += ["--backbone.layers", "features.3", "--patchcore.coreset-ratio", "0.05"]


@pytest.fixture
def fits(monkeypatch):
    """Fits give the tiny model, without a cluster; lists them."""
    done = []

    def fit(*arguments):
        done.append(arguments)
        return MODEL

    monkeypatch.setattr(job.fit, "fit", fit)
    monkeypatch.setattr(job, "connected", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(sources, "inventory_of", lambda *_: object())
    monkeypatch.setattr(job, "unlabelled", lambda _: "")
    monkeypatch.setattr(Tracker, "deliver", lambda *_: None)
    return done


def test_a_second_fit_into_a_folder_is_refused_while_the_first_is_at_work(leave, fits):
    with lock.locked(Out("model")):
        code, said, _ = leave("fit", *WORDS)
        assert code == 75
        assert said.endswith("; nothing to do here\n")
        assert fits == []
        code, _, _ = leave("fit", "--archive", "parts", "--name", "")  # a folder of its own
        assert code == 0
    code, _, err = leave("fit", *WORDS)
    assert (code, err) == (0, "")
    assert read_card("model").model_id == MODEL.card.model_id


def test_what_a_killed_fit_left_does_not_stop_the_next_one(leave, fits):
    files.write_bytes("model/_backbone.safetensors", b"half")
    files.write_bytes("model/_lock", b"")
    assert leave("fit", *WORDS)[0] == 0
    assert read_card("model").model_id == MODEL.card.model_id


def test_a_folder_with_a_model_of_other_settings_is_refused_before_the_fit(leave, fits):
    write_model("model", MODEL)
    code, _, err = leave("fit", *WORDS)
    assert code == 1
    assert f"model {MODEL.card.model_id} lies at model, and a fit replaces no other" in err
    assert fits == []
    assert leave("fit", *WORDS, *SAME)[0] == 0  # it gives the same model
    assert len(fits) == 1


def test_an_input_that_pictures_decide_about_may_give_the_same_model(leave, fits):
    write_model("model", MODEL)
    at = SAME.index("--input.size")
    assert leave("fit", *WORDS, *SAME[:at], *SAME[at + 2 :])[0] == 0
    assert fits[0][1].input.is_open
    assert leave("fit", *WORDS, *SAME[:at], *SAME[at + 2 :], "--input.size", "network")[0] == 1


def test_a_model_is_not_grown_into_its_own_folder(leave, fits):
    write_model("model", MODEL)
    code, _, err = leave("fit", *WORDS, "--grow", "model")
    assert code == 1
    assert "choose another --model-folder" in err
    assert fits == []


def test_the_same_settings_over_other_images_are_refused_before_they_are_written(
    leave, fits, monkeypatch
):
    other = replace(MODEL, card=replace(MODEL.card, fit={"failures": [], "images": 7}))
    write_model("model", other)
    code, _, err = leave("fit", *WORDS, *SAME)
    assert code == 1
    assert "another model lies at model; choose a new folder" in err
    assert read_card("model").model_id == other.card.model_id


def test_a_fit_takes_what_is_not_set_from_the_configuration_of_the_backbone(leave, fits):
    assert leave("fit", "--archive", "parts", "--name", "", "--backbone.name", "resnet18")[0] == 0
    (_, request, *_), *_ = fits
    assert request.input == InputSettings(size="auto", fit="auto")  # until pictures were read
    assert (request.backbone.weights, request.backbone.std) == ("IMAGENET1K_V1", STD)
    assert request.backbone.mean == "0.485,0.456,0.406"
    set_by_hand = ["--input.size", "96", "--backbone.std", "1,1,1", "--backbone.weights", "random"]
    assert leave("fit", "--archive", "parts", "--name", "", *set_by_hand)[0] == 0
    request = fits[1][1]
    assert (request.input.fit, request.input.size) == ("squash", 96)
    assert request.backbone.std == "1,1,1"
    assert request.backbone.weights == "random"


def test_a_fit_says_how_much_it_saw_of_the_coarsest_product(leave, fits, monkeypatch):
    card = MODEL.card.products["bolt"]
    seen = Detail((2240, 1120), 10.0, 80.0).as_metrics()
    coarse = replace(card, fit_metrics=card.fit_metrics | seen)
    products = {"bolt": card, "nut": coarse}
    told = replace(MODEL, card=replace(MODEL.card, products=products))
    monkeypatch.setattr(job.fit, "fit", lambda *_: told)
    monkeypatch.setattr(new_model, "write_model", lambda *_: None)
    code, said, err = leave("fit", *WORDS)
    assert (code, err) == (0, "")
    assert "a pixel that the network sees is 10 pixels of a picture of 2,240 x 1,120" in said
    assert "warning: most of the picture's detail is not seen" in said


def test_a_fit_takes_size_and_normalisation_from_timm(leave, fits):
    pytest.importorskip("timm", reason="the optional library timm is not installed")
    name = ["--backbone.name", "timm/vit_small_patch14_reg4_dinov2", "--backbone.layers", "norm"]
    name += ["--input.size", "network"]
    assert leave("fit", "--archive", "parts", "--name", "", *name)[0] == 0
    request = fits[0][1]
    assert (request.input.size, request.backbone.std) == (518, STD)
    assert request.backbone.weights == "lvd142m"
    other = ["--backbone.name", "timm/vit_small_patch16_dinov3"]
    code, _, err = leave("fit", "--archive", "parts", "--name", "", *other)
    assert code == 2
    assert "under the DINOv3 License" in err
    assert len(fits) == 1


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--input.fit", "squash"], "input.also whole needs tiles, and input.fit is squash"),
        (["--input.fit", "tile", "--grow", "model"], "--grow keeps the input of the model"),
        (["--input.fit", "tile", "--holdout", "0"], "--input.also whole combines p-values"),
    ],
)
@pytest.mark.parametrize("name", ["fit", "plan"])
def test_tiles_and_whole_pictures_need_tiles_and_held_out_images(leave, name, words, rule):
    code, _, err = leave(name, "--archive", "parts", "--input.also", "whole", *words)
    assert code == 2
    assert rule in err


def test_tiles_and_whole_pictures_are_fitted_as_one_model(leave, fits, monkeypatch):
    asked, made = [], []

    def fit(_, request, *arguments, **more):
        asked.append(request.input)
        return replace(MODEL, card=replace(MODEL.card, input=request.input))

    def ensemble(members, _, request, *more):
        made.append((members, request))
        return MODEL

    monkeypatch.setattr(also_whole, "fit", fit)
    monkeypatch.setattr(also_whole, "ensemble", ensemble)
    words = ["--input.also", "whole", "--input.fit", "tile", "--input.size", "64"]
    code, said, _ = leave("fit", *WORDS, *words, "--regions.false-alarm-rate", "0.2")
    assert code == 0
    assert "the same pictures as a whole" in said
    assert asked == [InputSettings(size=64, fit="tile"), InputSettings(size=64)]
    ((members, request),) = made
    assert [member.card.input for member in members] == asked
    assert (request.settings.combine, request.region_rate) == ("smallest_p", 0.2)
    code, _, err = leave("fit", *WORDS, *words)
    assert (code, len(asked)) == (1, 2)
    assert "and a fit replaces no other model" in err


def test_decided_images_are_left_out_on_demand_and_told_of_otherwise(leave, fits, monkeypatch):
    bolt, nut, good = (Part(name, "bolt", 1.0) for name in ("bolt.png", "nut.png", "good.png"))
    listed = list_parts("parts.parquet", [bolt, replace(nut, label=1), good])
    monkeypatch.setattr(sources, "inventory_of", lambda *_: listed)
    for part in (bolt, nut):
        shown = {"image_id": part.image_id, "uri": part.uri, "product": part.product}
        shown |= {"content_sha256": "0" * 64, "model_id": "m", "run_id": "2026-11-20-0000"}
        row = decisions.decided(shown, "defect", who="ada", source="page")
        decisions.append(Out("out"), [row])
    words = ["--archive", "parts", "--name", ""]
    code, said, _ = leave("fit", *words)
    assert code == 0
    warning = "people decided that 1 of the listed images are defects, and here they count as good"
    assert f"warning: {warning}; --labels out leaves them out" in said
    assert fits.pop()[-1] is None
    code, said, _ = leave("fit", *words, "--labels", "out")
    assert code == 0
    assert "people decided" not in said
    defects = fits.pop()[-1].defects
    assert sorted(defects["image_id"].to_pylist()) == sorted([bolt.image_id, nut.image_id])
    code, _, err = leave("fit", *words, "--labels", "elsewhere")
    assert code == 1
    assert "elsewhere holds no decision of people; decide with python -m jobs.review" in err


def test_a_model_is_grown_by_decisions_alone(leave, fits):
    write_model("model", MODEL)
    part = Part("bolt.png", "bolt", 1.0)
    shown = {"image_id": part.image_id, "uri": part.uri, "product": part.product}
    shown |= {"content_sha256": "0" * 64, "model_id": "m", "run_id": "2026-11-20-0000"}
    decisions.append(
        Out("out"), [decisions.decided(shown, "false_alarm", who="ada", source="page")]
    )
    words = ["--grow", "model", "--name", "", "--model-folder", "grown"]
    assert leave("fit", *words, "--labels", "out")[0] == 0
    inventory, *_, decided = fits.pop()
    assert inventory is None
    assert decided.false_alarms["uri"].to_pylist() == [part.uri]
    code, _, err = leave("fit", "--grow", "model", "--name", "")
    assert code == 2
    assert "name the images: --archive FOLDER" in err


def test_images_that_calibrate_are_tracked_beside_the_parts_that_they_are_of(
    leave, fits, monkeypatch
):
    calibration = Calibration.of([3.0, 2.0, 1.0, 0.5], ["a", "a", "b", "b"])
    card = replace(MODEL.card.products["bolt"], calibration=calibration, sizes={"64x64": 4})
    model = replace(MODEL, card=replace(MODEL.card, products={"bolt": card}))
    assert new_model.describe_calibration(card) == (
        "4 held-out images of 2 parts promise false-alarm rates down to 0.33 on average"
    )
    records = []
    monkeypatch.setattr(job.fit, "fit", lambda *_: model)
    monkeypatch.setattr(new_model, "write_model", lambda *_: None)
    monkeypatch.setattr(Tracker, "deliver", lambda _, record, *__: records.append(record))
    assert leave("fit", *WORDS)[0] == 0
    metrics = records[-1].metrics
    assert metrics["product_0.calibration_images"] == 4
    assert metrics["product_0.calibration_units"] == 2
