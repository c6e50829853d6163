"""HEIC, and AVIF of more than 8 bits."""

import io

import imagecodecs
import numpy as np
import pillow_heif
import pytest

from ops.failure import Failure
from ops.images.decode import DecodeSettings, decode
from tests import pictures

DEEP = np.random.default_rng(0).integers(0, 65536, (48, 64, 3), dtype=np.uint16)
SOFT = pictures.texture(1, 64, colour=True)


def heic(mode, values):
    out = io.BytesIO()
    file = pillow_heif.from_bytes(mode, values.shape[1::-1], values.tobytes())
    file.save(out, quality=-1, chroma=444, matrix_coefficients=0)
    return out.getvalue()


@pytest.mark.parametrize("depth", [10, 12])
@pytest.mark.parametrize("channels", [1, 3])
def test_avif_of_more_than_eight_bits_keeps_them(channels, depth):
    values = (DEEP if channels == 3 else DEEP[..., 0]) >> (16 - depth)
    picture = decode(
        bytes(imagecodecs.avif_encode(values, level=100, bitspersample=depth, speed=10))
    )
    assert picture.bit_depth == depth
    assert np.array_equal(picture.pixels, values)


def test_heic_of_eight_and_ten_bits():
    picture = decode(heic("RGB", SOFT))
    assert picture.bit_depth == 8
    assert np.abs(picture.pixels.astype(int) - SOFT).max() <= 2
    deep = decode(heic("RGB;16", SOFT.astype(np.uint16) * 257))
    assert deep.bit_depth == 10
    assert np.abs(deep.pixels / 1023 - SOFT / 255).max() < 0.01


@pytest.mark.parametrize("width", [1, 17, 33, 63])
def test_a_heic_of_any_width_has_its_own_columns(width):
    wide = np.repeat(SOFT, 2, 1)[:, :width]
    picture = decode(heic("RGB", wide))
    assert picture.pixels.shape == wide.shape
    assert np.abs(picture.pixels.astype(int) - wide).max() <= 2


def test_a_heic_is_bounded_and_cut_off_unreadable():
    data = heic("RGB", SOFT)
    asked = []
    decode(data, admit=asked.append)
    assert asked == [64 * 64]
    with pytest.raises(Failure, match="too_large"):
        decode(data, DecodeSettings(max_pixels=100))
    with pytest.raises(Failure, match="unreadable: damaged"):
        decode(data[: len(data) // 2])


def test_a_heic_of_several_pictures_is_refused():
    file = pillow_heif.HeifFile()
    for pixels in (SOFT, SOFT[::-1].copy()):
        file.add_frombytes("RGB", (64, 64), pixels.tobytes())
    out = io.BytesIO()
    file.save(out, quality=-1)
    with pytest.raises(Failure, match="unsupported: it has 2 pictures"):
        decode(out.getvalue())
