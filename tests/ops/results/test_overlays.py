import base64
import io

import numpy as np
import pytest
from PIL import Image

from ops.images.decode import Picture
from ops.images.resize import InputSettings, geometry
from ops.results import anomaly_map, overlays


def picture(width, height, depth=8, value=None):
    kind = np.uint8 if depth <= 8 else np.uint16
    shape = (height, width)
    noise = np.random.default_rng(0).integers(0, 2**depth, shape)
    return Picture((noise if value is None else np.full(shape, value)).astype(kind), depth)


@pytest.mark.parametrize(
    ("size", "small"), [((400, 200), (100, 50)), ((200, 400), (50, 100)), ((60, 30), (60, 30))]
)
def test_pictures_keep_their_shape_and_are_never_enlarged(size, small):
    assert overlays.shrunk(picture(*size), 100).shape == small[::-1]


@pytest.mark.parametrize("depth", [8, 12, 16])
def test_black_and_white_of_any_depth_stay_black_and_white(depth):
    for value, shown in ((0, 0), (2**depth - 1, 255)):
        deep = picture(300, 200, depth, value)
        assert (overlays.shrunk(deep, 50) == shown).all()
        assert (overlays.close_up(deep, 0, 0, 50) == shown).all()


@pytest.mark.parametrize(("x", "y"), [(0, 0), (299, 199), (150, 100), (10, 190)])
def test_a_close_up_holds_the_peak_and_nothing_but_the_picture(x, y):
    dark = picture(300, 200, value=0)
    dark.pixels[y, x] = 255
    part = overlays.close_up(dark, x, y, 64)
    assert part.shape == (64, 64)
    assert (part == 255).sum() == 1


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize(("width", "height"), [(640, 400), (100, 300)])
def test_a_map_lies_where_its_peak_is_in_the_picture(fit, width, height):
    settings = InputSettings(size=56, fit=fit, short_side=64)
    values = np.zeros((56, 56), dtype=np.float32)
    values[12, 40] = 5
    where = geometry(width, height, settings)
    found = anomaly_map.Decoded(
        anomaly_map.Scale(0.0, 0.001).levels(values), anomaly_map.Scale(0.0, 0.001), where, "m"
    )
    whole = picture(width, height)
    small = overlays.shrunk(whole, 200)
    laid = overlays.laid(found, whole, small, outside=-1)
    assert laid.shape == small.shape
    y, x = np.unravel_index(int(laid.argmax()), laid.shape)
    at_x, at_y = anomaly_map.peak(values, where)
    shrink = width / small.shape[1]
    assert x == pytest.approx(at_x / shrink, abs=1 + where.step_x / shrink)
    assert y == pytest.approx(at_y / shrink, abs=1 + where.step_y / shrink)
    # What lies outside of the centre that was cut out has no map.
    assert ((laid == -1).mean() > 0.2) == (fit == "crop")


@pytest.mark.parametrize("side", [32, 256])
def test_even_noise_is_bounded_in_bytes(side):
    most = max(2048, side**2 // 2)
    colour = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    kind, _, content = overlays.data_uri(colour, most).partition(",")
    data = base64.b64decode(content)
    assert kind == "data:image/jpeg;base64"
    assert len(data) <= most
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (side, side)
