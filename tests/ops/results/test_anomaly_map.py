import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter

from ops.errors import UserError
from ops.images.resize import Geometry, InputSettings, geometry
from ops.results import anomaly_map
from ops.results.anomaly_map import Scale
from tests import pictures

SCALE = Scale(-1.0, 4 / 65535)
WHERE = Geometry(2.0, 1.5, 3.0, 4.0)


def patch_scores(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2, size=(h, w)).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("shape", [(7, 7), (8, 5), (15, 15), (1, 1)])
def test_upsampling_is_bilinear_then_gaussian(shape, sigma):
    cells = patch_scores(*shape)
    tensor = torch.from_numpy(cells).double()[None, None]
    larger = F.interpolate(tensor, size=(64, 64), mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()
    expected = gaussian_filter(larger, sigma) if sigma else larger
    assert np.allclose(anomaly_map.upsample(cells, 64, sigma), expected, rtol=1e-5, atol=1e-6)


def test_a_flat_map_stays_flat_and_a_map_is_the_same_alone_or_after_others():
    assert np.allclose(
        anomaly_map.upsample(np.full((7, 7), 2.5, np.float32), 64, 4), 2.5, rtol=1e-6
    )
    first = anomaly_map.upsample(patch_scores(7, 7), 64, 4)
    anomaly_map.upsample(patch_scores(9, 9, 1), 64, 4)
    assert np.array_equal(anomaly_map.upsample(patch_scores(7, 7), 64, 4), first)


def test_a_decoded_map_differs_by_at_most_half_a_level():
    values = anomaly_map.upsample(patch_scores(7, 7).clip(0, 2.9), 64, 2)
    decoded = anomaly_map.decode(anomaly_map.encode(values, SCALE, WHERE, "m1"))
    assert np.abs(decoded.values() - values).max() <= SCALE.scale * 0.501 + 1e-6
    assert decoded.scale == SCALE
    assert decoded.geometry == WHERE


def test_any_reader_can_decode_the_png():
    data = anomaly_map.encode(np.zeros((4, 4), np.float32), SCALE, WHERE, "m1")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I;16"
        assert image.text["nightloupe:model_id"] == "m1"
        assert float(image.text["nightloupe:offset"]) == -1.0
        assert float(image.text["nightloupe:scale"]) == SCALE.scale


def test_the_scale_is_the_models_and_not_the_images():
    quiet, loud = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    quiet[2, 2], loud[2, 2], loud[5, 5] = 1, 1, 2
    levels = [
        anomaly_map.decode(anomaly_map.encode(v, SCALE, WHERE, "m")).levels for v in (quiet, loud)
    ]
    assert levels[0][2, 2] == levels[1][2, 2]
    assert levels[0][0, 0] == levels[1][0, 0]


def test_values_beyond_the_scale_are_clipped():
    values = np.array([[-50, -1, 3, 50]], np.float32)
    assert SCALE.levels(values).tolist() == [[0, 0, 65535, 65535]]


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_peaks_are_pixels_of_the_picture(fit):
    settings = InputSettings(size=64, fit=fit, short_side=80)
    where = geometry(400, 200, settings)
    values = np.zeros((64, 64), np.float32)
    values[40, 16] = 1
    x, y = anomaly_map.peak(values, where)
    if fit == "squash":
        assert (x, y) == (
            pytest.approx(16.5 * 400 / 64, abs=1),
            pytest.approx(40.5 * 200 / 64, abs=1),
        )
    else:  # resized to 160 x 80, then cut at (48, 8)
        assert (x, y) == (pytest.approx(64.5 * 2.5, abs=1), pytest.approx(48.5 * 2.5, abs=1))


def test_the_first_of_equal_peaks_is_the_peak():
    assert anomaly_map.peak(np.ones((4, 4), np.float32), Geometry(1, 1, 0, 0)) == (0, 0)


def test_a_png_that_is_not_a_map_is_refused():
    with pytest.raises(UserError, match=r"mode L, text without .*'scale'"):
        anomaly_map.decode(pictures.encoded(pictures.texture(0)))


@pytest.mark.parametrize("size", [0, 8, 100, -1])
def test_a_truncated_map_is_refused(size):
    place = geometry(64, 64, InputSettings(64))
    values = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    data = anomaly_map.encode(values, SCALE, place, "m")
    with pytest.raises(UserError, match="not a readable PNG"):
        anomaly_map.decode(data[:size] if size >= 0 else data[: len(data) // 2])
