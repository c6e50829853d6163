"""JPEG XL: size and depth from its header, pixels from libjxl."""

import imagecodecs
import numpy as np
import pytest

from ops.failure import Failure
from ops.images.decode import DecodeSettings, decode

COLOUR = np.random.default_rng(0).integers(0, 65536, (40, 30, 3), dtype=np.uint16)


def jxl(values, depth, **options):
    kind = np.uint8 if depth <= 8 else np.uint16
    codec = {"lossless": True, "bitspersample": depth} | options
    return bytes(imagecodecs.jpegxl_encode(values.astype(kind), **codec))


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_depth_keeps_its_values(channels, depth, box):
    values = (COLOUR if channels == 3 else COLOUR[..., 0]) >> (16 - depth)
    picture = decode(jxl(values, depth, usecontainer=box))
    assert picture.bit_depth == depth
    assert np.array_equal(picture.pixels, values)


@pytest.mark.parametrize(
    "size", [(1, 1), (8, 8), (7, 300), (256, 512), (300, 400), (600, 9), (9, 9000)]
)
def test_the_size_in_the_header_is_read_before_the_pixels(size):
    asked = []
    data = jxl(np.zeros((*size, 3), np.uint8), 8)
    assert decode(data, admit=asked.append).pixels.shape == (*size, 3)
    assert asked == [size[0] * size[1]]
    with pytest.raises(Failure, match="too_large" if size != (1, 1) else "unreadable"):
        decode(data if size != (1, 1) else data[:8], DecodeSettings(max_pixels=8))


def test_floating_point_needs_a_range():
    values = np.random.default_rng(0).random((20, 30), dtype=np.float32)
    data = bytes(imagecodecs.jpegxl_encode(values, lossless=True))
    pixels = decode(data, DecodeSettings(range="0,1")).pixels
    assert np.array_equal(pixels, np.rint(values.astype(float) * 65535))
    with pytest.raises(Failure, match="unsupported: its pixels are floating point"):
        decode(data)


def test_an_animation_and_a_truncated_file():
    frames = np.stack([COLOUR >> 8] * 3).astype(np.uint8)
    with pytest.raises(Failure, match="unsupported: it is a JPEG XL"):
        decode(bytes(imagecodecs.jpegxl_encode(frames, lossless=True)))
    data = jxl(COLOUR, 16)
    with pytest.raises(Failure, match="unreadable: damaged"):
        decode(data[: len(data) // 2])
