import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from ops.images.resize import Geometry, InputSettings, geometry
from ops.results import anomaly_map
from ops.results.anomaly_map import Scale

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
    assert np.allclose(anomaly_map.upsample(cells, (64, 64), sigma), expected, rtol=1e-5, atol=1e-6)


def test_a_flat_map_stays_flat_and_a_map_is_the_same_alone_or_after_others():
    assert np.allclose(
        anomaly_map.upsample(np.full((7, 7), 2.5, np.float32), (64, 64), 4), 2.5, rtol=1e-6
    )
    first = anomaly_map.upsample(patch_scores(7, 7), (64, 64), 4)
    anomaly_map.upsample(patch_scores(9, 9, 1), (64, 64), 4)
    assert np.array_equal(anomaly_map.upsample(patch_scores(7, 7), (64, 64), 4), first)


def test_a_rectangular_map_has_its_own_width_and_height():
    ramp = np.arange(3, dtype=np.float32)[None, :].repeat(2, 0)
    found = anomaly_map.upsample(ramp, (6, 2), 0)
    assert found.tolist() == [[0, 0.25, 0.75, 1.25, 1.75, 2]] * 2


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
