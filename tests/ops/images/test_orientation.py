import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from ops.images.orientation import orientation, turned


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
