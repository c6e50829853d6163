"""What a few pictures tell of a fit: the number of tiles, and how much detail is seen."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from ops.detectors.patchcore import PatchCoreSettings
from ops.features.backbone import BackboneSettings
from ops.images.placement import SIDE
from ops.images.resize import InputSettings
from ops.storage import uris
from pipelines.fitting.picture_sizes import Detail, PictureSizes, read_sizes
from pipelines.fitting.request import DETECTOR, FitRequest, Split
from tests import pictures

SQUASH = FitRequest("patchcore", PatchCoreSettings(), BackboneSettings())
TILE = replace(SQUASH, input=InputSettings(fit="tile", scale=0.5))
SIZES = PictureSizes({"nut": [(4000, 3000), (448, 448)], "bolt": []})


def test_the_number_of_tiles_is_the_mean_over_the_pictures():
    assert SIZES.tiles("nut", TILE) == (13 * 9 + 1) / 2
    assert SIZES.tiles("bolt", TILE) == SIZES.tiles("nut", TILE)  # none of its own was read
    assert SIZES.tiles("nut", SQUASH) == 1
    assert PictureSizes({}).tiles("nut", TILE) == 1


def test_the_picture_of_which_the_least_is_seen_is_told():
    assert SIZES.coarsest(SQUASH, 28) == Detail((4000, 3000), 4000 / 224, 4000 / 28)
    assert SIZES.coarsest(TILE, 28) == Detail((4000, 3000), 2.0, 16.0)
    assert PictureSizes({}).coarsest(SQUASH, 28) is None


def test_the_metrics_of_a_fit_give_the_detail_back():
    detail = Detail((4000, 3000), 4000 / 224, 4000 / 28)
    assert detail.as_metrics() == {
        "picture_width": 4000,
        "picture_height": 3000,
        "pixels_per_pixel_seen": 4000 / 224,
        "pixels_per_patch": 4000 / 28,
    }
    assert Detail.from_metrics(detail.as_metrics() | {"map_ceiling": 1.0}) == detail
    assert Detail.from_metrics({"map_ceiling": 1.0}) is None


@pytest.mark.parametrize("request_", [SQUASH, TILE])
def test_a_few_pictures_of_each_detector_are_read(tmp_path, request_):
    rows = []
    for number, (detector, size) in enumerate(
        [("nut", (30 + n, 20)) for n in range(9)] + [("bolt", (50, 40)), ("bolt", None)]
    ):
        location = tmp_path / f"{number}.png"
        drawn = pictures.encoded(np.full(size[::-1], 200, np.uint8)) if size else b"none"
        location.write_bytes(drawn)
        rows.append({"uri": uris.make(str(location)), "product": detector, DETECTOR: detector})
    kinds = {"bytes": pa.int64(), "member": pa.int64()}
    names = ["uri", "bytes", "version", "member", "product", "problem", DETECTOR]
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    table = pa.Table.from_pylist(rows, schema)
    split = Split(table, table.slice(0, 0))
    found = read_sizes(split, request_)
    assert found.by_detector == {"bolt": [(50, 40)], "nut": [(30, 20), (33, 20), (36, 20)]}
    assert found.small == {}
    more = read_sizes(split, request_, placed=True)
    assert more.by_detector == {"bolt": [(50, 40)], "nut": [(30 + n, 20) for n in range(9)]}
    assert more.small["nut"].shape == (9, SIDE, SIDE)
    assert more.small["nut"].dtype == np.uint8
    assert (more.small["nut"] == 200).all()
