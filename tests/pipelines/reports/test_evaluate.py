"""Evaluating without a cluster: what needs no maps, and what one worker does with them."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ops.images.fetch import FetchSettings
from ops.images.inventory import SCHEMA as INVENTORY
from ops.images.resize import InputSettings, geometry
from ops.results import map_png
from ops.results.anomaly_map import Scale
from pipelines.cluster.resources import Resources
from pipelines.reports import evaluate
from pipelines.reports.pixel_comparison import ComparePixels
from tests.ops.results.test_metrics import histogram


def tables(*products: tuple[str, list[tuple]]) -> tuple[pa.Table, pa.Table]:
    """Scores and inventory of products, from (label, split, score, is_anomalous)."""
    scored, listed = [], []
    for product, images in products:
        for number, (label, split, score, called) in enumerate(images):
            own = {"image_id": f"{product}{number}", "product": product}
            listed.append(own | {"label": label, "split": split})
            status = "ok" if score is not None else "unreadable"
            values = {"status": status, "score": score, "is_anomalous": called, "map_uri": None}
            scored.append(own | values)
    kinds = [("image_id", pa.string()), ("product", pa.string()), ("status", pa.string())]
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
    assert mean["note"] == "products with a value, of 2: image_auroc 1, oracle_f1 1"


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
        rows.append(own | {"map_uri": str(tmp_path / f"{number}.png"), "mask_uri": mask_uri})
    compare = ComparePixels(InputSettings(16), FetchSettings(backoff=0.01))
    pixels = compare(pa.Table.from_pylist(rows))["bolt"]
    assert np.allclose(pixels.histogram.counts, histogram(expected).counts, rtol=1e-12)
    assert (pixels.histogram.images, pixels.histogram.regions) == (3, 2)
    assert (pixels.no_usable_mask, pixels.regions_drawn) == (2, 2)
