"""Which images a fit takes, and a model is grown by, once people decided what they show."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow as pa
import pytest

from ops.archives.fetch import FetchSettings
from ops.detectors.patchcore import PatchCoreSettings
from ops.features.backbone import BackboneSettings
from ops.storage import files, uris
from ops.storage.paths import Out
from pipelines.fitting import calibration_images
from pipelines.fitting.decided import Decided, choose
from pipelines.fitting.request import ROW, FitRequest, NothingToFit, Select
from pipelines.tables import decisions
from tests.conftest import tiny_model
from tests.pipelines.fitting.test_calibration_images import rows
from tests.pipelines.tables.test_current_scores import publish, row
from tests.runs import Part, list_parts

REQUEST = FitRequest("patchcore", PatchCoreSettings(), BackboneSettings(), holdout=0.2)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


class World:
    """Files of parts, an inventory of them, and what people decided."""

    def __init__(self, folder):
        self.folder, self.out = folder, Out(str(folder / "out"))
        self.parts = [self.part(f"{n}.png") for n in range(20)]
        self.inventory = list_parts(str(folder / "parts.parquet"), self.parts)

    def part(self, name, product="bolt", **more):
        files.write_bytes(str(self.folder / name), name.encode())
        return Part(name, product, 1.0, folder=str(self.folder), **more)

    def decide(self, *words, content=None):
        """Decide of parts, each (part, decision), by their bytes at this time."""
        rows = []
        for part, word in words:
            data = content or files.read_bytes(uris.parse(part.uri).location)
            shown = {"image_id": part.image_id, "uri": part.uri, "product": part.product}
            shown |= {"content_sha256": hashlib.sha256(data).hexdigest()}
            shown |= {"model_id": "m", "run_id": "2026-11-20-0000"}
            rows.append(decisions.decided(shown, word, who="ada", source="page"))
        decisions.append(self.out, rows)

    def choose(self, inventory=None, earlier=None, **request):
        decided = Decided.read(self.out, FetchSettings())
        return choose(inventory, replace(REQUEST, **request), earlier, decided)


def names(table):
    return sorted(uri.rsplit("/", 1)[1] for uri in table["uri"].to_pylist())


def grown_from(*held_out, **fit):
    """A model that held images out."""
    model = tiny_model("bolt")
    kept = calibration_images.to_bytes(rows(*held_out)) if held_out else b""
    return replace(model, card=replace(model.card, fit=fit), held_out=kept)


def test_defects_are_left_out_of_the_fit_and_of_calibration(world):
    before = choose(world.inventory, REQUEST)
    [fitted, *_], [held_out, *_] = names(before.split.fit), names(before.split.held_out)
    by_name = {part.name: part for part in world.parts}
    world.decide((by_name[fitted], "defect"), (by_name[held_out], "defect"))
    world.decide((by_name[names(before.split.fit)[1]], "unsure"))
    chosen, record, sentences = world.choose(world.inventory)
    images = names(chosen.fit) + names(chosen.held_out)
    assert {fitted, held_out}.isdisjoint(images)
    assert len(images) == len(set(images)) == 18
    assert record == {"decisions": {"defects": 2}}
    assert sentences == ["decisions: 2 images that people decided to be defects are left out"]


def test_a_defect_of_other_bytes_says_nothing_and_of_the_same_bytes_it_holds(world):
    """An archive that was rewritten gives images other versions."""
    changed, copied = world.parts[0], world.parts[1]
    older = [replace(part, version="v0") for part in (changed, copied)]
    world.decide((older[0], "defect"), content=b"other bytes")
    world.decide((older[1], "defect"))
    chosen, record, _ = world.choose(world.inventory)
    images = names(chosen.fit) + names(chosen.held_out)
    assert changed.name in images
    assert copied.name not in images
    assert record["decisions"] == {"defects": 1}


def test_false_alarms_go_to_the_bank_and_never_to_the_calibration(world):
    alarms = [world.part(f"alarm{n}.png") for n in range(10)]
    world.decide(*((part, "false_alarm") for part in alarms))
    chosen, record, sentences = world.choose(None, grown_from("bolt/1", "bolt/2"))
    assert names(chosen.fit) == names_of(alarms)
    assert chosen.fit[ROW].to_pylist() == list(range(10))
    assert names(chosen.held_out) == ["1", "2"]
    assert sorted(record["false_alarms"]) == sorted(part.image_id for part in alarms)
    assert sentences == ["decisions: 10 false alarms are added as good images"]
    # With new images beside them, a tenth of these is held out, and no false alarm.
    both = world.choose(world.inventory, grown_from("bolt/1", "bolt/2")).split
    assert {*names_of(alarms)} <= {*names(both.fit)}
    assert {*names_of(alarms)}.isdisjoint(names(both.held_out))
    assert len(both.held_out) == 2 + 4
    assert both.fit["product"].to_pylist() == ["bolt"] * 26


def names_of(parts):
    return sorted(part.name for part in parts)


def test_held_out_images_stay_there_unless_they_are_defects(world):
    part, wrong, other = (world.part(f"held{n}.png") for n in range(3))
    new = world.part("new.png")
    earlier = grown_from()
    kept = calibration_images.to_bytes(
        list_parts(str(world.folder / "held.parquet"), [part, wrong, other]).read(
            list(rows("bolt/1").schema.names)
        )
    )
    earlier = replace(earlier, held_out=kept)
    world.decide((part, "false_alarm"), (wrong, "defect"), (new, "false_alarm"))
    chosen, record, sentences = world.choose(None, earlier)
    assert names(chosen.held_out) == names_of([part, other])
    assert names(chosen.fit) == ["new.png"]
    expected = {"defects_held_out_before": 1, "false_alarms_added": 1}
    expected |= {"false_alarms_known": 1, "false_alarms_changed": 0}
    assert record["decisions"] == expected
    assert "decisions: 1 such images calibrated the model before, and no longer do" in sentences


def test_what_is_known_changed_or_of_another_product_is_not_added(world):
    known, changed, gone, nut, new = (
        world.part(f"{name}.png", "nut" if name == "nut" else "bolt")
        for name in ("known", "changed", "gone", "nut", "new")
    )
    world.decide(*((part, "false_alarm") for part in (known, changed, gone, nut, new)))
    world.decide((world.parts[0], "false_alarm"))  # listed, so a good image of the fit anyway
    files.write_bytes(str(world.folder / "changed.png"), b"another picture")
    (world.folder / "gone.png").unlink()
    earlier = grown_from("bolt/1", false_alarms=[known.image_id])
    chosen, record, _ = world.choose(world.inventory, earlier)
    assert "new.png" in names(chosen.fit)
    assert {"known.png", "changed.png", "gone.png", "nut.png"}.isdisjoint(names(chosen.fit))
    assert record["false_alarms"] == [known.image_id, new.image_id]
    expected = {"defects": 0, "defects_held_out_before": 0, "false_alarms_added": 1}
    expected |= {"false_alarms_known": 2, "false_alarms_changed": 2}
    assert record["decisions"] == expected
    with pytest.raises(NothingToFit, match="no false alarm is new to the model"):
        world.choose(None, earlier, select=Select(["nut"]))


def test_a_person_goes_before_the_label_of_the_folder(world):
    called_bad, called_good = (
        replace(part, label=label) for part, label in zip(world.parts, (1, 0), strict=False)
    )
    listed = list_parts(str(world.folder / "labelled.parquet"), [called_bad, called_good])
    world.decide((called_bad, "false_alarm"), (called_good, "defect"))
    chosen = world.choose(listed, grown_from("bolt/1")).split
    assert names(chosen.fit) == [called_bad.name]
    assert names(chosen.held_out) == ["1"]


def test_a_fit_that_grows_nothing_takes_no_false_alarms_from_elsewhere(world):
    world.decide((world.part("alarm.png"), "false_alarm"))
    assert world.choose(world.inventory).split.fit.equals(
        choose(world.inventory, REQUEST).split.fit
    )


def test_parts_and_views_of_false_alarms_are_those_of_their_scores(world):
    """The first part calibrates by another view, and the model knows no view `side`."""
    places = {"p1-top": ("p1", "top"), "p2-top": ("p2", "top"), "p2-side": ("p2", "side")}
    shown = [world.part(name) for name in places]
    named = ("part", "view")
    scored = [
        row(part.uri, "v1", **dict(zip(named, places[part.name], strict=True))) for part in shown
    ]
    publish(world.out, 0, scored)
    world.decide(*((part, "false_alarm") for part in shown))
    model = grown_from()
    products = dict.fromkeys(("bolt/top", "bolt/front"), model.card.products["bolt"])
    card = replace(model.card, views="separate", products=products)
    held = rows("bolt/1").to_pylist()[0] | {"part": "p1", "view": "front"}
    kept = calibration_images.to_bytes(pa.Table.from_pylist([held], rows("bolt/1").schema))
    chosen = world.choose(None, replace(model, card=card, held_out=kept), views="separate").split
    assert names(chosen.fit) == ["p2-top"]
    assert chosen.fit["product"].to_pylist() == ["bolt/top"]
    assert chosen.fit["part"].to_pylist() == ["p2"]
