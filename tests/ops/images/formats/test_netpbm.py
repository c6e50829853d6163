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


def test_comments_between_values_are_left_out():
    head, text = ppm(COLOUR[..., 0] >> 4, 4095, text=True).split(b"\n4095\n")
    text = head + b"\n4095\n" + text.replace(b" ", b" # 7 8\n", 3)
    assert np.array_equal(decode(text).pixels, COLOUR[..., 0] >> 4)


@pytest.mark.parametrize(
    "data",
    [
        b"P4 9 1\n\0\0", b"P5 2 1 255\n12", b"P6 1 1 255\n123", b"P5 1 1 4095\n\0\1",
        b"Pf 1 1 -1\n\0\0\0\0", b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nENDHDR\n1",
    ],
)  # fmt: skip
def test_several_pictures_in_a_row_are_refused(data):
    settings = DecodeSettings(range="0,1")
    assert decode(data, settings).pixels.size
    with pytest.raises(Failure, match="unsupported: it holds several pictures"):
        decode(data * 2, settings)


def test_a_value_of_eight_bits_beyond_the_header_is_unreadable():
    assert decode(b"P5 2 1 100\n\0\x64").pixels.tolist() == [[0, 255]]
    with pytest.raises(Failure, match="run from 0 to 101, and its header declares 0 to 100"):
        decode(b"P5 2 1 100\n\0\x65")


def pam(values, largest, kind):
    head = f"P7\n# drawn\nWIDTH {values.shape[1]}\nHEIGHT {values.shape[0]}\n"
    head += f"DEPTH {values.shape[2]}\nMAXVAL {largest}\nTUPLTYPE {kind}\nENDHDR\n"
    return head.encode() + values.astype("u1" if largest < 256 else ">u2").tobytes()


@pytest.mark.parametrize("depth", [1, 8, 12, 16])
def test_arbitrary_maps_of_grey_and_colour_with_and_without_alpha(depth):
    values, white = COLOUR >> (16 - depth), 2**depth - 1
    scale = 255 if depth == 1 else 1
    full = white * scale
    grey = decode(pam(values[..., :1], white, "BLACKANDWHITE" if depth == 1 else "GRAYSCALE"))
    assert grey.bit_depth == max(8, depth)
    assert np.array_equal(grey.pixels, values[..., 0] * scale)
    assert np.array_equal(decode(pam(values, white, "RGB")).pixels, values * scale)
    both = values[..., 0] * scale * ((values[..., 1] * scale) / full)
    found = decode(pam(values[..., :2], white, "GRAYSCALE_ALPHA")).pixels
    assert np.array_equal(found, np.floor(both + 0.5))


def test_other_maps_are_unsupported_by_name():
    with pytest.raises(Failure, match="unsupported: it is a PAM of 3 channels 'LAB'"):
        decode(pam(COLOUR, 65535, "LAB"))
    with pytest.raises(Failure, match="unreadable"):
        decode(b"P7 332\n" + bytes(99))
