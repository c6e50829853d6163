import numpy as np
import pytest
from PIL import Image

from ops.errors import SettingError
from ops.images import resize as resize_module
from ops.images.decode import Picture
from ops.images.resize import (
    Geometry,
    InputSettings,
    geometry,
    map_size,
    pack,
    resize,
    resize_mask,
    tiling,
    unpack,
)
from tests import pictures

SQUASH = InputSettings(size=32)
CROP = InputSettings(size=32, fit="crop", short_side=40)
WIDE = InputSettings(size="48x32")
WIDE_CROP = InputSettings(size="48x32", fit="crop", short_side=40)


def ramps(width: int, height: int) -> tuple[Picture, Picture]:
    """Images whose values give the position of a pixel: 100 times its x, and its y."""
    y, x = np.mgrid[:height, :width]
    return Picture((100 * x).astype(np.uint16), 16), Picture((100 * y).astype(np.uint16), 16)


@pytest.mark.parametrize("settings", [SQUASH, CROP, WIDE, WIDE_CROP])
@pytest.mark.parametrize("size", [(100, 60), (60, 100), (64, 64), (20, 30), (33, 500)])
def test_input_pixels_map_back_to_where_their_values_came_from(settings, size):
    across, down = (resize(ramp, settings) for ramp in ramps(*size))
    where = geometry(*size, settings)
    for x, y in ((6, 6), (16, 16), (25, 20), (25, 9)):
        found = where.to_picture(x, y)
        assert found[0] == pytest.approx(across[y, x] / 100, abs=0.52)
        assert found[1] == pytest.approx(down[y, x] / 100, abs=0.52)


@pytest.mark.parametrize("settings", [SQUASH, CROP], ids=["squash", "crop"])
@pytest.mark.parametrize("size", [(100, 60), (7, 3), (1, 1), (32, 32), (4000, 3000)])
def test_corners_of_the_input_lie_on_the_picture(settings, size):
    where = geometry(*size, settings)
    for corner in ((0, 0), (31, 0), (0, 31), (31, 31)):
        x, y = where.to_picture(*corner)
        assert 0 <= x < size[0]
        assert 0 <= y < size[1]


def test_a_squashed_input_covers_the_whole_picture_and_a_cropped_one_its_centre():
    assert geometry(320, 64, SQUASH) == Geometry(10, 2, 0, 0)
    assert geometry(80, 160, CROP) == Geometry(2, 2, 4, 24)
    assert geometry(80, 160, CROP).to_picture(15.5, 15.5) == (40, 80)


def test_a_crop_is_never_larger_than_the_resized_picture():
    tight = InputSettings(size=32, fit="crop", short_side=16)
    assert resize(Picture(pictures.texture(0), 8), tight).shape == (32, 32)


def test_eight_bits_are_resampled_as_pillow_does_it():
    pixels = pictures.texture(0, 64, colour=True)
    found = resize(Picture(pixels, 8), SQUASH)
    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(found, np.asarray(expected))


def test_a_picture_of_the_inputs_size_stays_as_it_is():
    for pixels in (pictures.texture(0, 32), pictures.texture(0, 32, colour=True)):
        assert np.array_equal(resize(Picture(pixels, 8), SQUASH), pixels)
        deep = pixels.astype(np.uint16) * 257
        assert np.array_equal(resize(Picture(deep, 16), SQUASH), deep)


@pytest.mark.parametrize("shape", [(50, 70), (50, 70, 3)], ids=["grey", "colour"])
@pytest.mark.parametrize("name", ["bilinear", "lanczos"])
def test_sixteen_bits_are_rounded_and_not_truncated(shape, name):
    pixels = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    found = resize(Picture(pixels, 16), InputSettings(size=32, filter=name))
    kernel = Image.Resampling[name.upper()]
    planes = pixels.reshape(50, 70, -1).astype(np.float32)
    exact = [
        np.asarray(Image.fromarray(p).resize((32, 32), kernel)) for p in planes.T.swapaxes(1, 2)
    ]
    error = found.reshape(32, 32, -1) - np.stack(exact, axis=-1).clip(0, 65535)
    assert found.dtype == np.uint16
    assert np.abs(error).max() <= 0.5
    assert abs(error.mean()) < 0.02


def test_a_mask_stays_binary_and_thin_lines_are_not_blurred():
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:30] = 255
    mask[0, 0], mask[2, 2] = 127, 128
    found = resize_mask(mask, SQUASH)
    assert found.dtype == np.bool_
    assert found.sum() == 10 * 10 + found[0:2, 0:2].sum()
    assert found[10:20, 5:15].all()
    assert not found[0, 0]


def test_masks_of_other_depths_and_of_colours_mean_the_same():
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:30] = 255
    expected = resize_mask(mask, CROP)
    assert np.array_equal(resize_mask(mask.astype(np.uint16) * 257, CROP), expected)
    assert np.array_equal(resize_mask(np.dstack([mask, mask * 0, mask * 0]), CROP), expected)


def test_a_mask_of_class_numbers_is_true_except_at_zero():
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:30], mask[20:40, 30:40] = 1, 7
    found = resize_mask(mask, SQUASH)
    assert found.sum() == 10 * 15
    assert found[10:20, 5:20].all()
    assert not resize_mask(mask * 0, SQUASH).any()
    mask[0:2, 0:2] = 255  # now 1 and 7 are the grey of a blurred edge
    assert resize_mask(mask, SQUASH).sum() == 1


@pytest.mark.parametrize(("dtype", "depth"), [(np.uint8, 8), (np.uint16, 16), (np.uint16, 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_unpack_inverts_pack(dtype, depth, channels):
    shape = (8, 5) if channels == 1 else (8, 5, 3)
    pixels = np.random.default_rng(0).integers(0, 2**depth, shape).astype(dtype)
    found = unpack(pack(pixels), channels, depth, (5, 8))
    assert found.dtype == dtype
    assert np.array_equal(found, pixels[..., None] if channels == 1 else pixels)


def test_packed_bytes_do_not_depend_on_the_machines_byte_order():
    pixels = np.array([[1, 256]], np.uint16)
    for stored in (pixels, pixels.astype(">u2")):
        assert pack(stored).tobytes() == b"\1\0\0\1"


@pytest.mark.parametrize("shape", [(65_000, 1), (1, 65_000), (4, 30_000, 3), (30_000, 4, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_crop_of_a_strip_takes_memory_for_the_crop_alone(shape, dtype, monkeypatch):
    sizes = []
    whole = Image.Image.resize

    def resized(image, size, *rest):
        sizes.append(size)
        return whole(image, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", resized)
    ramp = np.linspace(0, np.iinfo(dtype).max, max(shape[:2]))
    pixels = np.zeros(shape, dtype)
    pixels += np.rint(ramp).astype(dtype).reshape((-1, 1, 1)[: len(shape)] if shape[0] > shape[1]
                                                  else (1, -1, 1)[: len(shape)])  # fmt: skip
    settings = InputSettings(size=224, fit="crop")
    found = resize(Picture(pixels, 8 if dtype == np.uint8 else 16), settings)
    assert set(sizes) == {(224, 224)}
    assert found.shape == (224, 224, *shape[2:])
    assert np.abs(found / np.iinfo(dtype).max - 0.5).max() < 0.01  # the centre
    assert resize_mask(pixels, settings).shape == (224, 224)


@pytest.mark.parametrize("name", ["bilinear", "lanczos"])
@pytest.mark.parametrize("size", [(40, 700), (700, 40), (61, 90)])
def test_a_crop_resized_alone_is_the_crop_of_the_whole(size, name, monkeypatch):
    y, x = np.mgrid[: size[1], : size[0]]
    soft = (120 + 60 * np.sin(x * 0.2) * np.cos(y * 0.17)).astype(np.uint8)
    settings = InputSettings(size=32, fit="crop", short_side=48, filter=name)
    expected = [resize(Picture(soft, 8), settings), resize_mask(soft, settings)]
    monkeypatch.setattr(resize_module, "_is_whole", lambda *_: False)
    found = [resize(Picture(soft, 8), settings), resize_mask(soft, settings)]
    assert np.abs(found[0].astype(int) - expected[0]).max() <= 1
    assert (found[1] != expected[1]).mean() < 0.07  # where a pixel's centre lies on an edge


TILE = InputSettings(size=32, fit="tile")


def test_with_tiles_a_picture_keeps_its_pixels_or_is_scaled_as_a_whole():
    picture, _ = ramps(100, 60)
    assert resize(picture, TILE) is picture.pixels
    half = InputSettings(size=32, fit="tile", scale=0.5)
    assert resize(picture, half).shape == (30, 50)
    assert resize(Picture(np.dstack([picture.pixels] * 3), 16), half).shape == (30, 50, 3)
    assert tiling(100, 60, half) == (50, 30, 32, (0, 18), (0,))


@pytest.mark.parametrize("pixels", [2**22, 1000])
@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("size", [(100, 60), (7, 3), (1, 1), (33, 500)])
def test_pixels_of_the_map_of_tiles_lie_on_the_picture(size, scale, pixels):
    settings = InputSettings(size=32, fit="tile", scale=scale, map_pixels=pixels)
    width, height = map_size(*size, settings)
    where = geometry(*size, settings)
    assert width * height <= pixels
    assert where == Geometry(size[0] / width, size[1] / height, 0, 0)
    for x, y in ((0, 0), (width - 1, height - 1)):
        at = where.to_picture(x, y)
        assert 0 <= at[0] < size[0]
        assert 0 <= at[1] < size[1]
    mask = np.zeros(size[::-1], np.uint8)
    mask[size[1] // 2 :] = 255
    found = resize_mask(mask, settings)
    assert found.shape == (height, width)
    assert found.mean() == pytest.approx((mask > 0).mean(), abs=0.51 / height)


def test_maps_of_other_fits_have_the_size_of_the_input():
    assert map_size(100, 60, SQUASH) == map_size(100, 60, CROP) == (32, 32)
    assert map_size(100, 60, WIDE) == map_size(100, 60, WIDE_CROP) == (48, 32)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scale": 0.0}, "input.scale 0.0 must lie in (0, 1]; 1 = native"),
        ({"scale": 1.5}, "input.scale 1.5 must lie in (0, 1]; 1 = native"),
        ({"overlap": 0.8}, "input.overlap 0.8 must lie in [0, 0.75]"),
        ({"overlap": -0.1}, "input.overlap -0.1 must lie in [0, 0.75]"),
        (
            {"size": "64x32"},
            "input.size 64x32 must be one number with input.fit tile: tiles are squares",
        ),
        ({"size": 16}, "input.size 16 must be at least 32 with input.fit tile"),
        ({"map_pixels": 0}, "input.map_pixels 0 must be at least 1"),
        ({"fit": "cut"}, "input.fit 'cut' must be auto, squash, crop or tile"),
    ],
)
def test_settings_of_tiles_out_of_range_are_refused(values, words):
    with pytest.raises(SettingError) as error:
        InputSettings(**{"fit": "tile"} | values)
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("size", "kept", "sides"),
    [
        (224, 224, (224, 224)),
        ("224", 224, (224, 224)),
        ("224x224", 224, (224, 224)),
        ("320x224", "320x224", (320, 224)),
        ("0320 X 224", "320x224", (320, 224)),
    ],
)
def test_equal_sizes_are_written_equally(size, kept, sides):
    settings = InputSettings(size=size)
    assert (settings.size, settings.sides) == (kept, sides)
    assert settings == InputSettings(size=kept)


@pytest.mark.parametrize(
    "size", ["", "x", "320x", "x224", "3x2x1", "-5", "a", "3.5", "\u0663x4", -5]
)
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(SettingError) as error:
        InputSettings(size=size)
    assert str(error.value) == (
        f"input.size {size!r} must be a number of pixels, or width x height, such as 320x224; or, "
        "for a fit, auto or network"
    )
    for nothing in ("0x224", 0):
        with pytest.raises(SettingError, match="must have sides of at least 1 pixel"):
            InputSettings(size=nothing)


def test_a_rectangle_is_filled_by_the_whole_picture_or_cut_from_its_centre():
    picture = ramps(100, 50)[0]
    assert resize(picture, WIDE).shape == (32, 48)
    assert geometry(96, 64, WIDE) == Geometry(2, 2, 0, 0)
    assert resize(picture, WIDE_CROP).shape == (32, 48)
    assert geometry(100, 50, WIDE_CROP) == Geometry(1.25, 1.25, 16, 4)
    mask = np.zeros((64, 96), np.uint8)
    mask[:32] = 255
    found = resize_mask(mask, WIDE)
    assert found.shape == (32, 48)
    assert found[:16].all()
    assert not found[16:].any()


def test_a_fit_may_leave_its_input_open():
    assert InputSettings(size="auto").is_open
    assert InputSettings(size="network", fit="tile").is_open
    assert InputSettings(fit="auto").is_open
    assert not InputSettings().is_open
