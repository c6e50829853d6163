"""Evaluating without a cluster: what needs no maps, and what one worker does with them."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA as INVENTORY
from ops.images.inspection import InspectionMask
from ops.images.orientation import upright
from ops.images.resize import InputSettings, geometry
from ops.results import map_png
from ops.results.anomaly_map import Scale
from ops.results.regions import RegionRules
from pipelines.cluster.resources import Resources
from pipelines.reports import evaluate
from pipelines.reports.pixel_comparison import ComparePixels, ProductPixels
from tests import tiffs
from tests.ops.results.test_metrics import histogram


def tables(*products: tuple[str, list[tuple]]) -> tuple[pa.Table, pa.Table]:
    """Scores and inventory of products, from (label, split, score, is_anomalous), and a part."""
    scored, listed = [], []
    for product, images in products:
        for number, (label, split, score, called, *part) in enumerate(images):
            own = {"image_id": f"{product}{number}", "product": product}
            own["part"] = part[0] if part else None
            listed.append(own | {"label": label, "split": split})
            status = "ok" if score is not None else "unreadable"
            values = {"status": status, "score": score, "is_anomalous": called, "map_uri": None}
            values |= {"uri": own["image_id"], "width": 32, "height": 32}
            scored.append(own | values)
            listed[-1]["uri"] = own["image_id"]
    kinds = [("image_id", pa.string()), ("product", pa.string()), ("status", pa.string())]
    kinds += [("content_sha256", pa.string()), ("part", pa.string())]
    kinds += [("uri", pa.string()), ("width", pa.int32()), ("height", pa.int32())]
    kinds += [("score", pa.float64()), ("is_anomalous", pa.bool_()), ("map_uri", pa.string())]
    return pa.Table.from_pylist(scored, pa.schema(kinds)), pa.Table.from_pylist(listed, INVENTORY)


def evaluated(*products: tuple[str, list[tuple]], thresholds=None) -> evaluate.Evaluation:
    scored, listed = tables(*products)
    settings = (InputSettings(8), FetchSettings(), Resources(), lambda *_: None)
    return evaluate.evaluate(scored, listed, thresholds or {}, *settings)


BOLT = (
    "bolt",
    [
        (0, "train", 9.0, True),  # seen by the detector
        (0, "test", 1.0, False),
        (0, "test", 2.0, False),
        (0, "test", 5.0, True),
        (1, "test", 3.0, False),
        (1, None, 6.0, True),
        (1, "test", 7.0, True),
        (1, "test", None, None),
        (None, "test", 8.0, True),
    ],
)
NUT = ("nut", [(0, "test", 1.0, None), (0, "test", 2.0, None)])


def test_image_metrics_are_exact_and_count_both_kinds_of_errors():
    evaluation = evaluated(BOLT, thresholds={"bolt": 4.0})
    row = evaluation.table.to_pylist()[0]
    assert (row["good"], row["defective"], row["not_scored"]) == (3, 3, 1)
    assert row["image_auroc"] == pytest.approx(8 / 9)
    assert row["image_ap"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert (row["oracle_threshold"], row["oracle_errors"]) == (3.0, 1)
    assert (row["oracle_false_alarms"], row["oracle_misses"]) == (1, 0)
    assert (row["threshold"], row["false_alarms"], row["misses"]) == (4.0, 1, 1)
    (separation,) = evaluation.separations
    assert (sorted(separation.good), sorted(separation.defective)) == ([1, 2, 5], [3, 6, 7])
    assert separation.image_roc.area() == row["image_auroc"]
    assert separation.threshold == 4.0


def test_unknown_metrics_are_null_and_the_mean_has_a_note():
    bolt, nut, mean = evaluated(BOLT, NUT).table.to_pylist()
    unknown = ("image_auroc", "oracle_threshold", "oracle_errors", "false_alarms", "misses")
    assert [nut[name] for name in unknown] == [None] * 5
    assert bolt["note"] == "no masks"
    assert (mean["product"], mean["image_auroc"]) == ("mean", bolt["image_auroc"])
    assert (mean["good"], mean["misses"], mean["pixel_images"]) == (5, 1, None)
    assert mean["oracle_threshold"] is None
    assert mean["note"] == "products with a value, of 2: image_auroc 1, image_ap 1, oracle_f1 1"


def test_pixels_are_judged_at_their_best_and_at_the_threshold_of_the_model(monkeypatch):
    pixels = ProductPixels()
    mask = np.array([[True, True, False, False]])
    pixels.histogram.add(np.array([[50, 30, 30, 10]], np.uint16), mask)
    monkeypatch.setattr(evaluate, "compare_pixels", lambda *_: {"bolt": pixels})
    scored, listed = tables(BOLT)
    settings = ({"bolt": 4.0}, InputSettings(8), FetchSettings(), Resources(), lambda *_: None)
    row = evaluate.evaluate(scored, listed, *settings, Scale(0.0, 0.1)).table.to_pylist()[0]
    assert (row["oracle_pixel_threshold"], row["oracle_pixel_f1"]) == (3.0, pytest.approx(0.8))
    assert row["pixel_f1"] == pytest.approx(2 / 3)  # one of two, and no false alarm
    assert row["pro_0_05"] == pytest.approx((0.5 + 0.55) / 2)
    assert row["pro"] == pytest.approx((0.5 + 0.8) / 2)
    row = evaluate.evaluate(scored, listed, *settings).table.to_pylist()[0]
    assert (row["oracle_pixel_threshold"], row["pixel_f1"]) == (None, None)
    assert row["oracle_pixel_f1"] == pytest.approx(0.8)


#: Five parts, and an image of none. Of part 4 one view was not scored, of 5 none has a label.
PARTS = (
    "bolt",
    [
        *((0, "test", 1.0, None, "1"), (0, "test", 4.0, None, "1")),
        *((0, "test", 2.0, None, "2"), (0, "test", 2.5, None, "2"), (0, "test", 0.5, None, "2")),
        *((1, "test", 3.0, None, "3"), (0, "test", 0.5, None, "3")),
        *((1, "test", None, None, "4"), (0, "test", 5.0, None, "4"), (1, "test", 1.0, None, "4")),
        *((None, "test", 9.0, None, "5"), (0, "validation", 9.0, None, "6")),
        (0, "test", 9.0, None),
    ],
)


def test_a_part_counts_once_by_the_highest_score_of_its_views():
    bolt, nut, mean = evaluated(PARTS, NUT).table.to_pylist()
    # Good parts have 4 and 2.5, defective ones 3 and 5.
    assert (bolt["good_parts"], bolt["defective_parts"]) == (2, 2)
    assert bolt["part_auroc"] == 3 / 4
    assert bolt["part_ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert bolt["image_auroc"] == 7.5 / 16
    assert (nut["good_parts"], nut["part_auroc"]) == (None, None)
    assert (mean["defective_parts"], mean["part_auroc"]) == (2, 3 / 4)
    assert "part_auroc 1" in mean["note"]


def test_parts_are_not_rated_where_views_have_detectors_of_their_own():
    scored, listed = tables(PARTS)
    settings = (InputSettings(8), FetchSettings(), Resources(), lambda *_: None)
    row = evaluate.evaluate(scored, listed, {}, *settings, has_parts=False).table.to_pylist()[0]
    assert (row["good_parts"], row["part_auroc"]) == (None, None)
    assert row["image_auroc"] == 7.5 / 16


def test_a_product_without_scores_has_a_row():
    row = evaluated(("bolt", [(1, "test", None, None)]), NUT).table.to_pylist()[0]
    assert (row["good"], row["defective"], row["not_scored"]) == (0, 0, 1)
    assert row["image_auroc"] is None


def test_without_labels_there_is_nothing_to_evaluate():
    with pytest.raises(evaluate.NothingLabelled, match="--layout or --pattern"):
        evaluated(("bolt", [(None, None, 1.0, True)]))


def test_a_worker_adds_up_maps_and_masks_of_any_format(tmp_path):
    rng = np.random.default_rng(0)
    scale, rows, expected = Scale(0.0, 1e-4), [], []
    for number, kind in enumerate((None, "png", "bmp", "gone", "empty.png")):
        values = rng.random((16, 16)).astype(np.float32)
        (tmp_path / f"{number}.png").write_bytes(
            map_png.encode(values, scale, geometry(32, 32, InputSettings(16)), "m")
        )
        mask = np.zeros((32, 32), np.uint8)
        mask[4:10, 2 * number : 2 * number + 8] = 255 if kind and "empty" not in kind else 0
        if kind and kind != "gone":
            Image.fromarray(mask).save(tmp_path / f"mask{number}.{kind}")
        if kind in {None, "png", "bmp"}:
            expected.append((scale.levels(values), mask[1::2, 1::2] > 0))
        own = {"product": "bolt", "label": int(kind is not None)}
        mask_uri = kind and str(tmp_path / f"mask{number}.{kind}")
        own |= {"uri": "/gone.png", "member": None, "bytes": None, "width": 32, "height": 32}
        own |= {"content_sha256": None}
        rows.append(own | {"map_uri": str(tmp_path / f"{number}.png"), "mask_uri": mask_uri})
    compare = ComparePixels(InputSettings(16), FetchSettings(backoff=0.01))
    pixels = compare(pa.Table.from_pylist(rows))["bolt"]
    assert np.allclose(pixels.histogram.counts, histogram(expected).counts, rtol=1e-12)
    assert (pixels.histogram.images, pixels.histogram.regions) == (3, 2)
    assert (pixels.no_usable_mask, pixels.regions_drawn) == (2, 2)


def test_pixels_outside_of_what_is_inspected_are_not_counted(tmp_path):
    levels = np.arange(256, dtype=np.float32).reshape(16, 16)
    where = geometry(32, 32, InputSettings(16))
    (tmp_path / "map.png").write_bytes(map_png.encode(levels, Scale(0.0, 1.0), where, "m"))
    drawn = np.zeros((32, 32), np.uint8)
    drawn[4:8, 8:24] = 255  # of which the left half is inspected
    drawn[20:24, 20:24] = 255  # and of this nothing
    Image.fromarray(drawn).save(tmp_path / "both.png")
    Image.fromarray(np.where(np.arange(32)[:, None] > 10, drawn, 0)).save(tmp_path / "right.png")
    shared = {"uri": "/gone.png", "member": None, "bytes": None, "width": 32, "height": 32}
    shared |= {"content_sha256": None, "map_uri": str(tmp_path / "map.png")}
    rows = [
        shared
        | {"product": product, "label": int(bool(name)), "mask_uri": name and str(tmp_path / name)}
        for product in ("bolt", "nut")
        for name in (None, "both.png", "right.png")
    ]
    left = np.tile(np.arange(8) < 4, (8, 1))
    masks = {"bolt": InspectionMask.of(left)}
    compare = ComparePixels(InputSettings(16), FetchSettings(attempts=1), masks)
    found = compare(pa.Table.from_pylist(rows))
    inside = np.tile(np.arange(16) < 8, (16, 1))
    truth = (drawn[1::2, 1::2] > 0) & inside
    counts = found["bolt"].histogram.counts
    whole = levels.astype(int)
    good = np.bincount(whole[inside], minlength=65536) + np.bincount(
        whole[inside & ~truth], minlength=65536
    )
    assert np.array_equal(counts[0], good)
    assert np.array_equal(counts[1], np.bincount(whole[truth], minlength=65536))
    bolt, nut = found["bolt"], found["nut"]
    assert (bolt.histogram.images, bolt.no_usable_mask, bolt.regions_drawn) == (2, 1, 1)
    assert (nut.histogram.images, nut.no_usable_mask, nut.regions_drawn) == (3, 0, 3)
    assert nut.histogram.counts[:2].sum() == 3 * 256


def test_regions_of_maps_are_compared_with_those_of_masks(tmp_path):
    scale, where = Scale(0.0, 0.1), geometry(64, 64, InputSettings(16))
    values = np.zeros((16, 16), np.float32)
    values[2:4, 2:4], values[10, 10], values[14, 2:4] = 5.0, 9.0, 5.0
    (tmp_path / "map.png").write_bytes(map_png.encode(values, scale, where, "m"))
    drawn = np.zeros((64, 64), np.uint8)
    drawn[8:16, 8:16] = drawn[8:16, 48:56] = 255  # of which the map shows the first
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    shared = {"uri": "/gone.png", "member": None, "bytes": None, "width": 64, "height": 64}
    shared |= {"content_sha256": None, "map_uri": str(tmp_path / "map.png")}
    mask = str(tmp_path / "mask.png")
    rows = pa.Table.from_pylist(
        [
            shared | {"product": product, "label": label, "mask_uri": mask if label else None}
            for product in ("bolt", "nut")
            for label in (0, 1)
        ]
    )

    def counts(threshold: float, least: float):
        regions = RegionRules({"bolt": threshold, "nut": None}, min_area=least)
        compare = ComparePixels(InputSettings(16), FetchSettings(attempts=1), {}, scale, regions)
        found = compare(rows)
        assert (found["nut"].regions_hit, found["nut"].false_regions) == (None, None)
        found["bolt"].merge(found["nut"])
        return found["bolt"].regions_hit, found["bolt"].false_regions

    assert counts(4.9, 0) == (1, 5)
    assert counts(5.0, 0) == (0, 2)  # above, not at the threshold
    assert counts(4.9, 32) == (1, 3)  # a pixel of the map is 16 of the picture


def joined(tmp_path, picture, mask, how=1, input_side=32, **more):
    """What a worker finds for one defective image; `picture` is stored with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = how
    Image.fromarray(picture).save(tmp_path / "p.png", exif=exif)
    Image.fromarray(mask).save(tmp_path / "m.png")
    as_seen = upright(picture, how)
    values = np.zeros((input_side, input_side), np.float32)
    where = geometry(as_seen.shape[1], as_seen.shape[0], InputSettings(32))
    (tmp_path / "map.png").write_bytes(map_png.encode(values, Scale(0.0, 1.0), where, "m"))
    row = {"product": "bolt", "label": 1, "member": None, "bytes": None}
    row |= {"width": as_seen.shape[1], "height": as_seen.shape[0]}
    row |= {"uri": str(tmp_path / "p.png"), "mask_uri": str(tmp_path / "m.png")}
    row |= {"map_uri": str(tmp_path / "map.png")}
    row |= {"content_sha256": hashlib.sha256((tmp_path / "p.png").read_bytes()).hexdigest()} | more
    compare = ComparePixels(InputSettings(32), FetchSettings(attempts=1))
    return compare(pa.Table.from_pylist([row]))["bolt"], compare._read(row).mask


def corner(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 4, : width // 4] = 255
    return mask


@pytest.mark.parametrize("how", [5, 6, 7, 8])
def test_a_mask_of_the_stored_picture_is_turned_like_it(tmp_path, how):
    stored = corner(64, 32)
    pixels, mask = joined(tmp_path, stored, stored, how)
    with Image.open(tmp_path / "p.png") as picture:
        as_seen = np.asarray(ImageOps.exif_transpose(picture))
    assert np.array_equal(mask, as_seen[::1, ::2][:32, :32] > 0)
    assert (pixels.turned, pixels.misfits, pixels.histogram.images) == (1, 0, 1)
    assert pixels.notes() == ["1 masks were turned by the EXIF orientation of their pictures"]


def test_a_mask_of_the_upright_picture_stays_as_it_is(tmp_path):
    pixels, mask = joined(tmp_path, corner(64, 32), corner(32, 64), 6)
    assert mask[:8, :8].all()
    assert mask.sum() == 64
    assert (pixels.turned, pixels.either_way, pixels.notes()) == (0, 0, [])


def test_the_orientation_of_a_picture_that_was_replaced_is_not_taken(tmp_path):
    pixels, _ = joined(tmp_path, corner(64, 32), corner(64, 32), 6, content_sha256="of another")
    assert (pixels.turned, pixels.misfits) == (0, 1)


@pytest.mark.parametrize(("how", "side"), [(3, 64), (6, 32)])
def test_a_mask_that_fits_both_ways_is_taken_as_upright_and_said(tmp_path, how, side):
    picture = corner(32, side)
    pixels, mask = joined(tmp_path, picture, corner(32, side), how)
    assert mask[:8, :8].all()
    assert (pixels.either_way, len(pixels.notes())) == (1, 1)


@pytest.mark.parametrize("shape", [(16, 32), (64, 32), (33, 64), (32, 63)])
def test_a_mask_of_another_size_is_refused_with_both_shapes(tmp_path, shape):
    pixels, mask = joined(tmp_path, corner(32, 64), corner(*shape))
    assert mask is None
    assert (pixels.misfits, pixels.no_usable_mask, pixels.histogram.images) == (1, 1, 0)
    assert f"has {shape[1]} x {shape[0]} px, its picture 64 x 32" in pixels.notes()[0]


def test_a_map_of_another_size_than_the_input_is_refused(tmp_path):
    pixels, _ = joined(tmp_path, corner(32, 32), corner(32, 32), input_side=16)
    assert "has 16 x 16 px, not the 32 x 32 of the model's input" in pixels.notes()[0]


def with_mask(tmp_path, data):
    joined(tmp_path, corner(32, 64), corner(32, 64))
    (tmp_path / "m.png").write_bytes(data)
    row = {"product": "bolt", "label": 1, "member": None, "bytes": None, "width": 64, "height": 32}
    row |= {"uri": str(tmp_path / "p.png"), "mask_uri": str(tmp_path / "m.png")}
    row |= {"map_uri": str(tmp_path / "map.png"), "content_sha256": "of a picture"}
    compare = ComparePixels(InputSettings(32), FetchSettings(attempts=1))
    return compare(pa.Table.from_pylist([row]))["bolt"], compare._read(row).mask


@pytest.mark.parametrize("kind", [np.float32, np.int16, np.uint16, np.uint8])
def test_masks_of_any_type_are_read_in_one_way(tmp_path, kind):
    mask = (corner(32, 64) > 0).astype(kind)
    _, found = with_mask(tmp_path, tiffs.one(mask, mask.itemsize * 8, sample_format=SAMPLES[kind]))
    assert found.sum() == found[:8, :8].sum() == 64


SAMPLES = {np.float32: 3, np.int16: 2, np.uint16: 1, np.uint8: 1}


def test_a_mask_that_cannot_be_read_is_counted_with_its_reason(tmp_path):
    page = tiffs.page(corner(32, 64), 8)
    pixels, mask = with_mask(tmp_path, tiffs.file(page, page))
    assert mask is None
    assert (pixels.unreadable, pixels.no_usable_mask, pixels.misfits) == (1, 1, 0)
    (note,) = pixels.notes()
    assert note.startswith("1 masks cannot be read: ")
    assert "unsupported: it has 2 frames or pages" in note
