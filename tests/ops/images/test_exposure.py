"""Exposure normalisation against numpy in float64, and its invariances."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from ops.detectors.image_batches import to_images
from ops.images.exposure import normalise_exposure
from ops.images.resize import InputSettings, pack
from tests import pictures

kinds = pytest.mark.parametrize("kind", ["median", "standard"])
depths = pytest.mark.parametrize(("dtype", "depth"), [("u1", 8), ("u2", 12), ("u2", 16)])


def drawn(dtype: str, depth: int, channels: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(depth)
    values = rng.gamma(3.0, (2**depth - 1) / 12, (channels, 32, 32)).clip(0, 2**depth - 1)
    return torch.from_numpy(values.astype(dtype))


def in_numpy(pixels: torch.Tensor, full: int, kind: str) -> np.ndarray:
    x = pixels.numpy().astype(np.float64) / full
    if kind == "median":
        middle = np.quantile(x, 0.5, method="lower")
        return np.clip(0.4 * x / (middle + 0.001), 0, 1)
    return np.clip(0.45 + 0.15 * (x - x.mean()) / (x.std() + 0.02), 0, 1)


@kinds
@depths
@pytest.mark.parametrize("channels", [1, 3])
def test_exposure_matches_its_formula_in_float64(kind, dtype, depth, channels):
    pixels = drawn(dtype, depth, channels)
    found = normalise_exposure(pixels, 2**depth - 1, kind)
    assert found.dtype == torch.float32
    assert found.shape == pixels.shape
    np.testing.assert_allclose(found, in_numpy(pixels, 2**depth - 1, kind), atol=2e-6)


@depths
def test_as_is_only_divides_by_the_full_scale(dtype, depth):
    pixels = drawn(dtype, depth)
    assert torch.equal(
        normalise_exposure(pixels, 2**depth - 1, "as_is"), pixels.float() / (2**depth - 1)
    )


@kinds
def test_half_the_light_gives_about_the_same_image(kind):
    """At any depth, up to the constants that keep black images black."""
    bright = drawn("u2", 16).clone()
    dark = torch.from_numpy(bright.numpy() // 2)
    before = (
        (normalise_exposure(dark, 65535, "as_is") - normalise_exposure(bright, 65535, "as_is"))
        .abs()
        .mean()
    )
    after = (
        (normalise_exposure(dark, 65535, kind) - normalise_exposure(bright, 65535, kind))
        .abs()
        .mean()
    )
    assert after < 0.1 * before
    eight = torch.from_numpy((bright.numpy() // 257).astype("u1"))
    deep = torch.from_numpy(eight.numpy().astype("u2") * 257)
    torch.testing.assert_close(
        normalise_exposure(deep, 65535, kind), normalise_exposure(eight, 255, kind)
    )


def test_colours_keep_their_ratios_under_one_median():
    pixels = torch.full((3, 16, 16), 20, dtype=torch.uint8)
    pixels[0], pixels[1] = 60, 40
    red, green, blue = normalise_exposure(pixels, 255, "median")[:, 0, 0].tolist()
    assert red / blue == pytest.approx(3)
    assert green / blue == pytest.approx(2)
    red, green, blue = normalise_exposure(pixels, 255, "standard")[:, 0, 0].tolist()
    assert red - green == pytest.approx(green - blue)
    assert red > green > blue


@kinds
@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_a_uniform_image_stays_uniform_and_finite(kind, value):
    found = normalise_exposure(torch.full((1, 16, 16), value, dtype=torch.uint8), 255, kind)
    assert torch.isfinite(found).all()
    assert len(found.unique()) == 1
    if kind == "standard":
        assert float(found[0, 0, 0]) == pytest.approx(0.45)
    elif value == 0:
        assert not found.any()


@kinds
def test_an_image_gets_the_same_bits_in_any_batch_and_with_any_number_of_threads(kind):
    grey, colour = pictures.texture(0, 128), pictures.texture(1, 128, colour=True)
    deep = grey.astype(np.uint16) * 200
    rows = pa.Table.from_pylist(
        [
            {"pixels": pack(pixels).tobytes(), "channels": pixels.ndim * 2 - 3, "bit_depth": depth}
            for pixels, depth in ((grey, 8), (colour, 8), (deep, 16))
        ]
    )
    settings = InputSettings(128, exposure=kind)
    whole = to_images(rows, settings, "cpu")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        alone = [to_images(rows.slice(i, 1), settings, "cpu")[0] for i in range(3)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.stack(alone), whole)
    assert not torch.equal(whole, to_images(rows, InputSettings(128), "cpu"))
