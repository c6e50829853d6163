import io

import numpy as np
import pytest
from PIL import Image

from ops.errors import UserError
from ops.images.resize import Geometry, InputSettings, geometry
from ops.results import anomaly_map, map_png
from ops.results.anomaly_map import Scale
from tests import pictures

SCALE = Scale(-1.0, 4 / 65535)
WHERE = Geometry(2.0, 1.5, 3.0, 4.0)


def test_a_decoded_map_differs_by_at_most_half_a_level():
    values = anomaly_map.upsample(
        np.random.default_rng(0).gamma(2, size=(7, 7)).astype(np.float32).clip(0, 2.9), (64, 64), 2
    )
    decoded = map_png.decode(map_png.encode(values, SCALE, WHERE, "m1"))
    assert np.abs(decoded.values() - values).max() <= SCALE.scale * 0.501 + 1e-6
    assert decoded.scale == SCALE
    assert decoded.geometry == WHERE


def test_any_reader_can_decode_the_png():
    data = map_png.encode(np.zeros((4, 4), np.float32), SCALE, WHERE, "m1")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I;16"
        assert image.text["nightloupe:model_id"] == "m1"
        assert float(image.text["nightloupe:offset"]) == -1.0
        assert float(image.text["nightloupe:scale"]) == SCALE.scale


def test_the_scale_is_the_models_and_not_the_images():
    quiet, loud = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    quiet[2, 2], loud[2, 2], loud[5, 5] = 1, 1, 2
    levels = [map_png.decode(map_png.encode(v, SCALE, WHERE, "m")).levels for v in (quiet, loud)]
    assert levels[0][2, 2] == levels[1][2, 2]
    assert levels[0][0, 0] == levels[1][0, 0]


def test_a_png_that_is_not_a_map_is_refused():
    with pytest.raises(UserError, match=r"mode L, text without .*'scale'"):
        map_png.decode(pictures.encoded(pictures.texture(0)))


@pytest.mark.parametrize("size", [0, 8, 100, -1])
def test_a_truncated_map_is_refused(size):
    place = geometry(64, 64, InputSettings(64))
    values = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    data = map_png.encode(values, SCALE, place, "m")
    with pytest.raises(UserError, match="not a readable PNG"):
        map_png.decode(data[:size] if size >= 0 else data[: len(data) // 2])
