import io

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from ops.images.orientation import orientation, turned
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
        assert np.array_equal(turned(pixels, how), np.asarray(ImageOps.exif_transpose(image)))


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
