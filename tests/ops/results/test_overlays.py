import base64
import io

import numpy as np
import pytest
from PIL import Image

from ops.augment.synthetic_defects import Defective
from ops.images.decode import Picture
from ops.images.resize import Geometry, InputSettings, geometry
from ops.results import anomaly_map, map_png, overlays
from ops.results.anomaly_map import Scale
from tests import pictures

SCALE = Scale(-1.0, 4 / 65535)


def picture(width, height, depth=8, value=None):
    kind = np.uint8 if depth <= 8 else np.uint16
    shape = (height, width)
    noise = np.random.default_rng(0).integers(0, 2**depth, shape)
    return Picture((noise if value is None else np.full(shape, value)).astype(kind), depth)


@pytest.mark.parametrize(
    ("size", "small"), [((400, 200), (100, 50)), ((200, 400), (50, 100)), ((60, 30), (60, 30))]
)
def test_thumbnails_keep_the_aspect_ratio_and_are_never_enlarged(size, small):
    assert overlays.thumbnail(picture(*size), 100).shape == small[::-1]


@pytest.mark.parametrize("depth", [8, 12, 16])
def test_black_and_white_of_any_depth_stay_black_and_white(depth):
    for value, shown in ((0, 0), (2**depth - 1, 255)):
        deep = picture(300, 200, depth, value)
        assert (overlays.thumbnail(deep, 50) == shown).all()
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
    scale = Scale(0.0, 0.001)
    decoded = map_png.Decoded(scale.levels(values), scale, where, "m")
    original = picture(width, height)
    small = overlays.thumbnail(original, 200)
    on_thumbnail = overlays.map_resized(
        decoded, (original.width, original.height), small.shape[1::-1], outside=-1
    )
    assert on_thumbnail.shape == small.shape
    y, x = np.unravel_index(int(on_thumbnail.argmax()), on_thumbnail.shape)
    at_x, at_y = anomaly_map.peak(values, where)
    shrink = width / small.shape[1]
    assert x == pytest.approx(at_x / shrink, abs=1 + where.step_x / shrink)
    assert y == pytest.approx(at_y / shrink, abs=1 + where.step_y / shrink)
    # Outside of the cropped centre there is no map.
    assert ((on_thumbnail == -1).mean() > 0.2) == (fit == "crop")


@pytest.mark.parametrize("side", [32, 256])
def test_a_data_uri_of_noise_stays_within_its_bytes(side):
    most = max(2048, side**2 // 2)
    colour = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    kind, _, content = overlays.data_uri(colour, most).partition(",")
    data = base64.b64decode(content)
    assert kind == "data:image/jpeg;base64"
    assert len(data) <= most
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (side, side)


@pytest.mark.parametrize("colour", [False, True])
def test_an_overlay_is_the_grey_picture_where_the_map_is_low_and_coloured_where_it_is_high(colour):
    picture = pictures.texture(0, 32, colour=colour)
    values = np.zeros((32, 32), np.float32)
    values[10:20, 10:20] = 2
    blended = overlays.blend(picture, values, SCALE, 1.0).astype(int)
    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    outside = values == 0
    assert np.abs(blended - grey[..., None])[outside].max() <= 1
    assert np.ptp(blended[~outside], axis=-1).min() > 20
    assert np.array_equal(overlays.overlay(picture, values, SCALE, 1.0), blended)
    # Without a threshold, colours begin in the middle between the scale's offset and the peak.
    blended = overlays.blend(picture, values, SCALE, 0.5)
    assert np.array_equal(overlays.overlay(picture, values, SCALE, None), blended)


def test_the_overlay_of_a_thumbnail_is_that_of_the_input_if_sizes_are_equal():
    original = picture(32, 32)
    values = np.random.default_rng(1).random((32, 32)).astype(np.float32)
    decoded = map_png.Decoded(SCALE.levels(values), SCALE, Geometry(1, 1, 0, 0), "m")
    small = overlays.thumbnail(original, 32)
    expected = overlays.overlay(original.pixels, decoded.values(), SCALE, 0.5)
    assert np.array_equal(overlays.thumbnail_overlay(small, original, decoded, 0.5), expected)


def test_contact_sheets_hold_columns_side_by_side_of_pictures_from_top_to_bottom():
    squares = [np.full((8, 8, 3), 10 * number, np.uint8) for number in range(6)]
    columns = [overlays.sheet_column(squares[i : i + 2], 16) for i in (0, 2, 4)]
    sheet = np.asarray(overlays.contact_sheet(columns))
    assert sheet.shape == (32, 48, 3)
    assert (sheet[8::16, 8::16, 0] == [[0, 20, 40], [10, 30, 50]]).all()
    pngs = [overlays.to_png(column) for column in columns]
    with Image.open(io.BytesIO(overlays.join_columns(pngs))) as joined:
        assert np.array_equal(np.asarray(joined), sheet)


def test_a_sheet_of_defects_shows_each_pair_and_outlines_the_mask_in_red():
    fabric = pictures.texture(0, 96, colour=True).transpose(2, 0, 1) / 255.0
    mask = np.zeros((96, 96), bool)
    mask[20:40, 30:50] = True
    pairs = [(fabric, Defective(1 - fabric, mask)), (fabric[:1], Defective(fabric[:1], mask))]
    with Image.open(io.BytesIO(overlays.defects_sheet(pairs, 96))) as sheet:
        assert sheet.size == (2 * 96, 2 * 96)
        pixels = np.asarray(sheet)
    assert (pixels[:96, :96] == np.rint(fabric.transpose(1, 2, 0) * 255)).all()
    red = (pixels == (255, 0, 0)).all(axis=2)
    assert not red[:96].any()
    for column in (0, 96):
        rows, columns = np.nonzero(red[96:, column : column + 96])
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (19, 40, 29, 50)
