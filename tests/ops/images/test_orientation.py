import io

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from ops.images.orientation import orientation, upright
from tests import tiffs


@pytest.mark.parametrize("how", range(1, 9))
def test_arrays_are_turned_as_pillow_turns_images(how):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = how
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", exif=exif)
    assert orientation(out.getvalue()) == how
    with Image.open(out) as image:
        assert np.array_equal(upright(pixels, how), np.asarray(ImageOps.exif_transpose(image)))


def test_orientations_one_to_eight():
    lying = np.array([[1, 2], [3, 4], [5, 6]])
    expected = {
        1: [[1, 2], [3, 4], [5, 6]], 2: [[2, 1], [4, 3], [6, 5]], 3: [[6, 5], [4, 3], [2, 1]],
        4: [[5, 6], [3, 4], [1, 2]], 5: [[1, 3, 5], [2, 4, 6]], 6: [[5, 3, 1], [6, 4, 2]],
        7: [[6, 4, 2], [5, 3, 1]], 8: [[2, 4, 6], [1, 3, 5]],
    }  # fmt: skip
    assert {n: upright(lying, n).tolist() for n in range(1, 9)} == expected


def test_a_file_that_names_no_orientation_is_upright():
    assert orientation(b"no image") == 1


@pytest.mark.parametrize("how", range(1, 9))
def test_files_that_pillow_does_not_open_say_how_they_lie(how):
    deep = np.zeros((16, 24), np.uint16)
    assert orientation(tiffs.one(deep, 12, tags={274: (3, [how])})) == how
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0%c\0\0\0\0\0\0" % how
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    jpeg = bytes(imagecodecs.jpeg8_encode(deep, bitspersample=12))
    assert orientation(jpeg[:2] + segment + jpeg[2:]) == how
