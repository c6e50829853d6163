"""PGM and PPM of more than 8 bits, and PFM."""

import numpy as np
import pytest

from ops.failure import Failure
from ops.images.decode import DecodeSettings, decode

COLOUR = np.random.default_rng(0).integers(0, 65536, (4, 5, 3), dtype=np.uint16)


def ppm(values, largest, text=False):
    kind = {(2, False): "P5", (3, False): "P6", (2, True): "P2", (3, True): "P3"}[values.ndim, text]
    head = f"{kind}\n# drawn\n{values.shape[1]} {values.shape[0]}\n{largest}\n".encode()
    if text:
        return head + b" ".join(b"%d" % v for v in values.reshape(-1).tolist())
    return head + values.astype(">u2").tobytes()


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("values", [COLOUR, COLOUR[..., 0]], ids=["colour", "grey"])
@pytest.mark.parametrize("depth", [9, 10, 12, 14, 16])
def test_all_bits_are_kept_and_the_largest_value_is_the_scale(values, depth, text):
    data = ppm(values >> (16 - depth), 2**depth - 1, text)
    picture = decode(data)
    assert picture.bit_depth == depth
    assert np.array_equal(picture.pixels, values >> (16 - depth))


def test_other_scales_become_sixteen_bits():
    values = COLOUR % 1001
    picture = decode(ppm(values, 1000))
    assert picture.bit_depth == 16
    assert np.array_equal(picture.pixels, (values.astype(int) * 65535 + 500) // 1000)


def test_values_beyond_the_header_or_the_settings_are_refused():
    with pytest.raises(Failure, match="unreadable: damaged"):
        decode(ppm(COLOUR, 4095))
    with pytest.raises(Failure, match=r"unsupported: its values reach \d+, more than the 4095"):
        decode(ppm(COLOUR, 65535), DecodeSettings(bit_depth=12))
    with pytest.raises(Failure, match="cannot hold 5 x 4 pixels"):
        decode(ppm(COLOUR, 4095)[:-60])
    with pytest.raises(Failure, match="unreadable"):
        decode(ppm(COLOUR, 70000))


@pytest.mark.parametrize("order", ["<", ">"])
def test_portable_floats_are_scaled_by_the_range(order):
    values = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    data = f"Pf\n5 4\n{-1.0 if order == '<' else 1.0}\n".encode()
    data += values[::-1].astype(f"{order}f4").tobytes()
    pixels = decode(data, DecodeSettings(range="0,1")).pixels
    assert np.array_equal(pixels, np.rint(values.astype(float) * 65535))
    with pytest.raises(Failure, match="unsupported: its pixels are floating point"):
        decode(data)
