"""Inspection masks: what is inspected of a picture, whatever its size and however it is resized."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from ops.errors import UserError
from ops.failure import Failure
from ops.images import inspection
from ops.images.decode import Picture
from ops.images.inspection import InspectionMask, read_mask
from ops.images.resize import InputSettings, resize
from ops.images.tiles import cut, tiling
from tests import pictures

LEFT = np.zeros((30, 40), bool)
LEFT[:, :20] = True


def png(pixels: np.ndarray, **options: object) -> bytes:
    return pictures.encoded(pixels, **options)


def slanted(width: int, height: int) -> np.ndarray:
    return np.add.outer(np.arange(height) / height, np.arange(width) / width) < 0.8


def test_a_mask_keeps_its_pixels_and_its_hash_however_it_is_stored():
    mask = InspectionMask.of(slanted(37, 23))
    assert np.array_equal(mask.inspected, slanted(37, 23))
    assert not mask.inspected.flags.writeable
    with Image.open(io.BytesIO(mask.png)) as stored:
        assert (stored.mode, stored.size) == ("1", (37, 23))
    again = InspectionMask(png(slanted(37, 23).astype(np.uint8) * 255))
    assert again.png != mask.png
    assert again.sha256 == mask.sha256
    assert pickle.loads(pickle.dumps(mask)) == mask
    # 12 x 2 and 2 x 12 have the same bits.
    shapes = {
        InspectionMask.of(np.ones(shape, bool)).sha256 for shape in [(2, 12), (12, 2), (3, 8)]
    }
    assert len(shapes) == 3
    assert InspectionMask.of(LEFT).share == 0.5


def test_outside_of_a_mask_a_picture_is_grey_at_every_depth():
    mask = InspectionMask.of(LEFT)
    for depth, level in ((8, 115), (12, 1843), (16, 29491)):
        kind = np.uint8 if depth == 8 else np.uint16
        pixels = np.random.default_rng(0).integers(0, 2**depth, (60, 80, 3)).astype(kind)
        before = pixels.copy()
        covered = mask.covered(Picture(pixels, depth, "a note"))
        assert np.array_equal(covered.pixels[:, :40], pixels[:, :40])
        assert (covered.pixels[:, 40:] == level).all()
        assert (covered.bit_depth, covered.note) == (depth, "a note")
        assert np.array_equal(pixels, before)


def test_pictures_are_covered_in_strips(monkeypatch):
    mask, picture = InspectionMask.of(slanted(13, 11)), Picture(pictures.texture(1, 57), 8)
    whole = mask.covered(picture).pixels
    monkeypatch.setattr(inspection, "_AT_ONCE", 100)
    assert np.array_equal(mask.covered(picture).pixels, whole)
    rows, columns = ((2 * np.arange(57) + 1) * n // 114 for n in (11, 13))
    outside = ~slanted(13, 11)[np.ix_(rows, columns)]
    assert np.array_equal(whole, np.where(outside, 115, picture.pixels))


def test_squashed_and_cropped_inputs_know_which_of_their_pixels_are_inspected():
    mask = InspectionMask.of(LEFT)
    squashed = mask.on_map(80, 60, InputSettings(16))
    assert np.array_equal(squashed, np.tile(np.arange(16) < 8, (16, 1)))
    # The shorter side becomes 18, and the centre of 24 x 18 is cut out: columns 4 to 19.
    cropped = mask.on_map(80, 60, InputSettings(16, "crop", 18))
    assert np.array_equal(cropped, np.tile(np.arange(4, 20) < 12, (16, 1)))
    tiled = InputSettings(32, "tile", scale=0.5, map_pixels=300)
    assert mask.on_map(80, 60, tiled).shape == (15, 20)  # 40 x 30 scaled, and the map smaller
    assert np.array_equal(mask.on_map(80, 60, tiled)[0], np.arange(20) < 10)


@pytest.mark.parametrize("size", [(150, 100), (90, 40), (40, 90), (20, 30), (64, 64)])
def test_tiles_are_cut_from_a_mask_as_from_the_picture(size):
    values = slanted(2 * size[0] + 1, 2 * size[1])
    mask, grid = InspectionMask.of(values), tiling(*size, 64, 0.5)
    whole = mask.rows(size, 0, size[1])
    assert whole.shape == size[::-1]
    for number in range(grid.total):
        assert np.array_equal(mask.on_tile(grid, number), cut(whole, grid, number))


@pytest.mark.parametrize("settings", [InputSettings(16), InputSettings(16, "crop", 18)])
def test_no_input_depends_on_what_lies_outside(settings):
    mask = InspectionMask.of(slanted(331, 200))
    one = np.random.default_rng(0).integers(0, 256, (120, 198, 3)).astype(np.uint8)
    inside = mask.rows((198, 120), 0, 120)
    other = np.where(inside[..., None], one, 255 - one)
    found = [resize(mask.covered(Picture(pixels, 8)), settings) for pixels in (one, other)]
    assert np.array_equal(*found)
    touched = one.copy()
    touched[58:62, 48:54] = 0
    assert not np.array_equal(resize(mask.covered(Picture(touched, 8)), settings), found[0])


def test_a_picture_of_another_shape_is_refused_with_both():
    mask = InspectionMask.of(LEFT)
    for size in [(4000, 3000), (4039, 3000), (40, 30), (4, 3)]:
        mask.check(*size, InputSettings(16))
    for size in [(3000, 4000), (4045, 3000), (3955, 3000), (30, 30)]:
        with pytest.raises(Failure, match=f"its {size[0]} x {size[1]} px .* the 40 x 30 of") as no:
            mask.check(*size, InputSettings(16))
        assert no.value.status == "unsupported"


def test_a_mask_of_which_no_pixel_is_seen_is_refused():
    spot = np.zeros((300, 400), bool)
    spot[101, 3] = True
    mask = InspectionMask.of(spot)
    mask.check(400, 300, InputSettings(64, "tile"))
    for settings in (
        InputSettings(16),
        InputSettings(32, "crop", 32),  # it lies where the crop has cut off
        InputSettings(64, "tile", scale=0.1),
        InputSettings(64, "tile", map_pixels=300),
    ):
        with pytest.raises(Failure, match="no pixel is left of the mask"):
            mask.check(400, 300, settings)


def test_a_mask_is_read_from_any_png_in_black_and_white():
    half = LEFT.astype(np.uint8)
    for stored in (
        png(half * 255),
        png(half),  # numbers of classes
        png(half.astype(np.uint16) * 65535),
        png(np.dstack([half * 255] * 3)),
        png(half * 100 + 100),  # levels below half of the scale are black
        png(Image.fromarray(half * 255).convert("1")),
        png(Image.fromarray(half * 255).convert("P")),
    ):
        assert np.array_equal(read_mask(stored), LEFT)


HUGE = pictures.png_by_hand(2**13, 2**11 + 1, 8, 0, b"\0" * 10)
RED = png(np.dstack([LEFT * np.uint8(255), LEFT * np.uint8(0), LEFT * np.uint8(0)]))
HOSTILE = {
    "empty": (b"", "it is no image, and a mask is a PNG"),
    "text": (b"<svg>", "it is no image, and a mask is a PNG"),
    "jpeg": (pictures.encoded(LEFT.astype(np.uint8) * 255, "JPEG"), "it is JPEG, and a mask is"),
    "cut": (png(slanted(99, 99).astype(np.uint8))[:60], "it cannot be read .*; save it again"),
    "huge": (HUGE, "it has more than 16,777,216 pixels; shrink it"),
    "coloured": (RED, "it has colours, and a mask is black and white"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_mask_is_refused_with_the_reason(kind):
    data, sentence = HOSTILE[kind]
    with pytest.raises(UserError, match=sentence):
        read_mask(data)
