"""Rows through reading, detecting and drawing: one out for every row in, bad ones with a reason."""

import copy
import dataclasses
import errno
import hashlib
import io
import os
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA
from ops.detectors.detector import Checkpoint, FitCounts
from ops.detectors.image_batches import to_images
from ops.detectors.model_card import ModelCard, ProductCard
from ops.detectors.patchcore import PatchCore, PatchCoreSettings
from ops.detectors.score_images import ScoreImages
from ops.distributed import Alone
from ops.images.content_index import Contents, key
from ops.images.decode import DecodeSettings
from ops.images.inspection import InspectionMask
from ops.images.read_images import KNOWN, Read
from ops.images.resize import InputSettings
from ops.results import anomaly_map, map_png, overlays
from ops.results.anomaly_map import Scale
from ops.results.calibration import Calibration
from ops.results.write_maps import DrawMaps, DrawSketches
from ops.storage import files, uris
from ops.storage.paths import Out
from ops.storage.storage_errors import StorageError
from tests import pictures
from tests.ops.conftest import TINY

INPUT = InputSettings(size=64)
SETTINGS = PatchCoreSettings(dim=24, projection=0, coreset_ratio=0.05)
FILES = {
    "good.png": pictures.encoded(pictures.texture(100)),
    "empty.png": b"",
    "deep.png": pictures.encoded(pictures.texture(100).astype(np.uint16) * 257),
    "text.png": b"no image",
    "blob.png": pictures.encoded(pictures.with_blob(pictures.texture(200), 20, 40)),
    "animated.gif": pictures.animated("GIF"),
}
STATUSES = ["ok", "unreadable", "ok", "unreadable", "ok", "unsupported"]


class Tensors:
    """A model in memory."""

    def __init__(self, card, backbone, detector) -> None:
        self.card = card
        self.of_backbone = backbone.state
        self.masks = {}
        self.of_product = lambda product: detector.state()


@pytest.fixture(scope="module")
def tensors(backbone) -> Tensors:
    detector = PatchCore(SETTINGS, backbone)
    drawn = np.stack([pictures.texture(seed) for seed in range(4)])
    images = torch.from_numpy(drawn)[:, None].expand(-1, 3, -1, -1) / 255
    detector.add_images(images, torch.arange(4))
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    held = detector.score(images.flip(-1)).image.tolist()
    product = ProductCard("nut.safetensors", "", FitCounts(1), {}, Calibration.of(held))
    scale = Scale(0.0, 4 * detector.map_ceiling() / anomaly_map.LEVELS)
    card = ModelCard(
        method="patchcore",
        settings=dataclasses.asdict(SETTINGS),
        backbone=TINY,
        backbone_sha256="",
        input=INPUT,
        decode=DecodeSettings(),
        products={"nut": product},
        map_scale=scale,
        false_alarm_rate=0.2,
        fit={},
    )
    return Tensors(card, backbone, detector)


@pytest.fixture
def rows(tmp_path) -> pa.Table:
    listed = []
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
        row = {"uri": uris.make(str(tmp_path / name)), "bytes": len(data), "product": "nut"}
        listed.append(row | {"image_id": f"{len(listed):032x}"})
    schema = pa.schema(
        [(name, pa.string()) for name in ("image_id", "uri", "product", "problem")]
        + [("bytes", pa.int64()), ("member", pa.int64())]
    )
    return pa.Table.from_pylist(listed, schema)


def read(rows: pa.Table, products=("nut",)) -> pa.Table:
    return Read(INPUT, DecodeSettings(), FetchSettings(), products)(rows)


def test_bad_images_are_rows_in_their_place(rows):
    result = read(rows)
    assert result["uri"].to_pylist() == rows["uri"].to_pylist()
    assert result["status"].to_pylist() == STATUSES
    for row in result.to_pylist():
        assert (row["pixels"] is None) == (row["reason"] is not None) == (row["status"] != "ok")


def test_what_was_read_is_described(rows):
    result = read(rows).to_pylist()
    hashes = [hashlib.sha256(data).hexdigest() for data in FILES.values()]
    assert [row["content_sha256"] for row in result] == hashes
    assert [result[2][name] for name in ("width", "height", "bit_depth")] == [64, 64, 16]


def test_lost_images_and_unknown_products_are_never_read(rows):
    problem = rows.set_column(
        rows.schema.get_field_index("problem"), "problem", pa.array(["cut"] + [None] * 5)
    )
    (lost, *_) = read(problem).to_pylist()
    assert (lost["status"], lost["reason"], lost["content_sha256"]) == ("unreadable", "cut", None)
    other = read(rows, products=("bolt",)).to_pylist()
    assert {row["status"] for row in other} == {"unknown_product"}
    assert "'nut'" in other[0]["reason"]


def test_known_contents_are_told_by_their_hash_and_not_decoded(rows):
    keys = [
        key(hashlib.sha256(FILES[name]).hexdigest(), "nut") for name in ("good.png", "text.png")
    ]
    known = Contents(np.sort(np.array(keys, np.uint64)))
    result = Read(INPUT, DecodeSettings(), FetchSettings(), ("nut",), known)(rows).to_pylist()
    assert [row["status"] for row in result] == [KNOWN, *STATUSES[1:3], KNOWN, *STATUSES[4:]]
    for row in (result[0], result[3]):
        assert (row["pixels"], row["width"], row["reason"]) == (None, None, None)
        assert len(row["content_sha256"]) == 64


def test_how_often_a_read_was_repeated_is_told_of_each_row(rows, monkeypatch):
    real, left = files.read_bytes, {"empty.png": 2, "deep.png": 1, "text.png": 99}

    def read_bytes(location, **version):
        name = location.rpartition("/")[2]
        if left.get(name, 0):
            left[name] -= 1
            raise OSError(5, "input/output error")
        return real(location, **version)

    monkeypatch.setattr(files, "read_bytes", read_bytes)
    hasty = FetchSettings(attempts=4, backoff=0)
    result = Read(INPUT, DecodeSettings(), hasty, ("nut",))(rows)
    assert result["retries"].to_pylist() == [0, 2, 1, 3, 0, 0]
    assert result["status"].to_pylist() == [*STATUSES[:3], "unavailable", *STATUSES[4:]]


def test_images_lie_between_zero_and_one_in_three_channels_whatever_their_depth(rows):
    result = read(rows).take([0, 2])
    eight, sixteen = to_images(result, INPUT, "cpu")
    expected = torch.from_numpy(pictures.texture(100)).float() / 255
    torch.testing.assert_close(eight, expected.expand(3, 64, 64))
    torch.testing.assert_close(sixteen, eight)


def test_detecting_scores_what_was_read_and_passes_failures_on(rows, tensors):
    result = ScoreImages(tensors)(read(rows))
    assert result["status"].to_pylist() == STATUSES
    scores = result["score"].to_pylist()
    assert [score is not None for score in scores] == [status == "ok" for status in STATUSES]
    assert scores[4] > scores[0]
    assert scores[2] == pytest.approx(scores[0], rel=1e-5)  # the same picture in 16 bits
    assert result["is_anomalous"].to_pylist()[4] is True
    assert "pixels" not in result.schema.names


def test_a_run_may_judge_by_other_thresholds_than_the_model(rows, tensors):
    scores = [score for score in ScoreImages(tensors)(read(rows))["score"].to_pylist() if score]
    for limit in (min(scores), max(scores)):
        flagged = sum(score > limit for score in scores)
        result = ScoreImages(tensors, thresholds={"nut": limit})(read(rows))
        verdicts = result["is_anomalous"].to_pylist()
        assert (verdicts.count(True), verdicts.count(None)) == (flagged, len(rows) - len(scores))
    unjudged = ScoreImages(tensors, thresholds={"nut": None})(read(rows))
    assert unjudged["p_value"].null_count == unjudged["is_anomalous"].null_count == len(rows)


def test_detectors_used_longest_ago_leave_when_memory_ends(rows, tensors):
    """Any bound gives the same scores; only how often tensors are fetched differs."""
    good = read(rows).take([0, 2, 4])
    size = sum(t.numel() * t.element_size() for t in tensors.of_product("nut").values())
    (card,) = tensors.card.products.values()
    names = ("a", "b", "c")
    cards = {name: dataclasses.replace(card, file=f"{name}.safetensors") for name in names}
    fetched = []

    class Many:
        card = dataclasses.replace(tensors.card, products=cards)
        of_backbone = tensors.of_backbone
        masks = MappingProxyType({})

        def of_product(self, product):
            fetched.append(product)
            return tensors.of_product(product)

    def scored(memory):
        fetched.clear()
        detect = ScoreImages(Many(), memory=memory)
        where = good.schema.get_field_index("product")
        result = []
        for asked in ("aba", "cbb", "aaa"):
            batch = good.set_column(where, "product", pa.array(list(asked)))
            result += detect(batch)["score"].to_pylist()
        return result, "".join(fetched)

    everything, order = scored(3 * size)
    assert order == "abc"
    assert scored(2 * size) == (everything, "abca")  # b was used after a, when c came
    assert scored(size) == (everything, "abcba")
    assert scored(0) == (everything, "abcba")
    assert None not in everything


def test_a_row_scores_the_same_alone_and_among_others(rows, tensors):
    detect, batch = ScoreImages(tensors), read(rows)
    together = detect(batch)
    for i in range(len(batch)):
        assert detect(batch.slice(i, 1)).to_pylist() == together.slice(i, 1).to_pylist()


def test_a_score_that_is_no_number_is_a_failure(rows, tensors, monkeypatch):
    detect = ScoreImages(tensors)
    broken = detect._model.detector("nut")
    state = broken.state()
    broken.load_state(state | {"bank": state["bank"] * torch.nan})
    result = detect(read(rows)).to_pylist()
    assert [row["status"] for row in result] == [s.replace("ok", "undefined") for s in STATUSES]
    assert all(row["score"] is None and row["reason"] for row in result)


@pytest.mark.parametrize("policy", ["none", "flagged", "all"])
def test_maps_are_drawn_as_asked_for_and_point_at_the_blob(rows, tensors, tmp_path, policy):
    out = Out(str(tmp_path / "out"))
    detected = ScoreImages(tensors, keep=True)(read(rows))
    card, thresholds = tensors.card, {"nut": 1.0}
    draw = DrawMaps("m1", INPUT, card.map_scale, 2.0, thresholds, out, policy, overlays=True)
    drawn = draw(detected).to_pylist()
    wanted = {
        "none": [False] * 6,
        "flagged": [row["is_anomalous"] is True for row in drawn],
        "all": [status == "ok" for status in STATUSES],
    }[policy]
    assert [row["map_uri"] is not None for row in drawn] == wanted
    assert np.hypot(drawn[4]["peak_x"] - 20, drawn[4]["peak_y"] - 40) <= 8
    assert drawn[1]["peak_x"] is None
    for row in drawn:
        if row["map_uri"]:
            decoded = map_png.decode(files.read_bytes(uris.parse(row["map_uri"]).location))
            assert decoded.scale == card.map_scale
            assert decoded.levels.shape == (64, 64)
            assert files.exists(out.overlay("m1", row["image_id"]))
    assert not {"pixels", "patch_scores"} & drawn[0].keys()


def test_rectangular_inputs_give_rectangular_maps_that_point_at_the_blob(rows, tensors, tmp_path):
    wide = InputSettings(size="96x64")
    theirs = copy.copy(tensors)
    theirs.card = dataclasses.replace(tensors.card, input=wide)
    done = ScoreImages(theirs, keep=True)(Read(wide, DecodeSettings(), FetchSettings())(rows))
    out, scale = Out(str(tmp_path / "out")), theirs.card.map_scale
    draw = DrawMaps("m1", wide, scale, 2.0, {"nut": 1.0}, out, "all", overlays=True)
    drawn = draw(done).to_pylist()
    assert np.hypot(drawn[4]["peak_x"] - 20, drawn[4]["peak_y"] - 40) <= 8
    decoded = map_png.decode(files.read_bytes(uris.parse(drawn[4]["map_uri"]).location))
    assert decoded.levels.shape == (64, 96)
    assert decoded.geometry == (64 / 96, 1.0, 0, 0)
    assert ModelCard.from_json(theirs.card.to_json()).input == wide


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_maps_that_cannot_be_written_cost_no_score_and_are_tried_once(
    rows, tensors, tmp_path, monkeypatch, number
):
    tried = []

    def write(location, data):
        tried.append(location)
        raise StorageError(os.strerror(number), location, number)

    monkeypatch.setattr(files, "write_bytes", write)
    detected = ScoreImages(tensors, keep=True)(read(rows))
    scale, out = tensors.card.map_scale, Out(str(tmp_path / "out"))
    draw = DrawMaps("m1", INPUT, scale, 2.0, {"nut": 1.0}, out, "all", overlays=True)
    drawn = draw(detected)
    assert drawn["score"].equals(detected["score"])
    assert drawn["status"].to_pylist() == list(STATUSES)
    assert drawn["map_uri"].null_count == len(STATUSES)
    assert len(tried) == 1
    sentence = f"{tried[0]}: {os.strerror(number)}"
    assert drawn["map_error"].to_pylist() == [sentence if s == "ok" else None for s in STATUSES]


def test_sketches_show_each_picture_above_and_its_map_below(rows, tensors, tmp_path):
    detected = ScoreImages(tensors, keep=True)(read(rows))
    where, scale = Out(str(tmp_path / "out")), tensors.card.map_scale
    draw = DrawSketches("m1", INPUT, scale, 2.0, {"nut": None}, where, "none", overlays=True)
    drawn = draw(detected)
    sketches = drawn["sketch"].to_pylist()
    assert [sketch is not None for sketch in sketches] == [s == "ok" for s in STATUSES]
    with Image.open(io.BytesIO(sketches[4])) as pair:
        above, below = (np.asarray(pair.crop((0, y, 128, y + 128)), int) for y in (0, 128))
    assert np.ptp(above, axis=2).max() == 0
    coloured = np.argwhere(np.ptp(below, axis=2) > 30)  # at twice the pixels of the input
    assert np.hypot(*(np.median(coloured, axis=0)[::-1] / 2 - (20, 40))) <= 8
    with Image.open(io.BytesIO(overlays.join_columns([sketches[4], sketches[0]]))) as both:
        assert both.size == (256, 256)
        assert np.array_equal(np.asarray(both)[:128, :128], above)
    assert not (tmp_path / "out").exists()


def test_separate_views_are_read_scored_and_drawn_by_detectors_of_their_own(
    rows, tensors, tmp_path
):
    views = ["top", "top", None, "top", "side", "top"]
    rows = rows.append_column("view", pa.array(views, pa.string()))
    top = tensors.card.products["nut"]
    strict = dataclasses.replace(top, calibration=Calibration.of([0.0]))
    cards = {"nut/top": top, "nut/side": strict}
    card = dataclasses.replace(tensors.card, products=cards, views="separate")
    theirs = copy.copy(tensors)
    theirs.card = card
    step = Read(INPUT, DecodeSettings(), FetchSettings(), frozenset(cards), views="separate")
    found = ScoreImages(theirs, keep=True)(step(rows)).to_pylist()
    expected = ScoreImages(tensors)(read(rows)).to_pylist()
    assert found[2]["status"] == "unknown_product"
    assert found[2]["reason"] == "the model has detectors for nut/side, nut/top, not 'nut'"
    assert (found[0]["score"], found[0]["p_value"]) == (
        expected[0]["score"],
        expected[0]["p_value"],
    )
    assert (found[4]["score"], found[4]["p_value"]) == (expected[4]["score"], 1 / 2)
    draw = DrawMaps(
        model_id="m",
        input=INPUT,
        scale=card.map_scale,
        sigma=4.0,
        thresholds=dict.fromkeys(cards, 1.0),
        out=Out(str(tmp_path / "out")),
        policy="all",
        overlays=True,
        views="separate",
    )
    drawn = draw(ScoreImages(theirs, keep=True)(step(rows))).to_pylist()
    assert [row["map_uri"] is not None for row in drawn] == [True, *[False] * 3, True, False]


@pytest.mark.parametrize("size", ["squash", "tile"])
def test_maps_are_lowest_and_have_no_peak_outside_of_the_mask(tensors, tmp_path, size):
    settings = dataclasses.replace(INPUT, fit=size, overlap=0.5)
    inside = np.tile(np.arange(96) < 40, (96, 1))
    masks = {"nut": InspectionMask.of(inside)}
    good = pictures.texture(100, 96)
    seen = pictures.with_blob(good, 20, 40)
    drawn = {"good": good, "seen": seen, "hidden": pictures.with_blob(seen, 70, 30)}
    for name, pixels in drawn.items():
        (tmp_path / f"{name}.png").write_bytes(pictures.encoded(pixels))
    rows = [
        {"uri": uris.make(str(tmp_path / f"{name}.png")), "product": "nut", "image_id": name}
        for name in drawn
    ]
    rows = pa.Table.from_pylist(rows, SCHEMA)
    theirs = copy.copy(tensors)
    theirs.card, theirs.masks = dataclasses.replace(tensors.card, input=settings), masks
    read = Read(settings, DecodeSettings(), FetchSettings(), masks=masks)
    scored = ScoreImages(theirs, keep=True)(pa.concat_tables(read.pieces(rows)))
    scale, out = tensors.card.map_scale, Out(str(tmp_path / "out"))
    draw = DrawMaps("m", settings, scale, 4.0, {"nut": 1.0}, out, "all", True, masks=masks)
    one, two, three = draw(scored).to_pylist()
    assert two["score"] == three["score"] > one["score"]
    maps = [
        map_png.decode(files.read_bytes(uris.parse(row["map_uri"]).location))
        for row in (one, two, three)
    ]
    assert np.array_equal(maps[1].levels, maps[2].levels)
    on_map = masks["nut"].on_map(96, 96, settings)
    for row, found in zip((one, two, three), maps, strict=True):
        assert (found.levels[~on_map] == 0).all()
        assert (found.levels[on_map] > 0).all()
        assert row["peak_x"] < 40
    assert abs(three["peak_x"] - 20) <= 10
    assert abs(three["peak_y"] - 40) <= 10
