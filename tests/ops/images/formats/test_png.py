"""Damaged metadata of a PNG cost the metadata and a note; damaged pixels cost the picture."""

import struct
import zlib

import numpy as np
import pytest
from PIL import PngImagePlugin

from ops.failure import Failure
from ops.images.decode import DecodeSettings, decode
from tests import pictures

GREY = pictures.texture(0, 32)[:, :20]
DEEP = np.random.default_rng(0).integers(0, 65536, (7, 5, 4), dtype=np.uint16)


def with_chunk(name, content, data=None):
    data = data or pictures.encoded(GREY)
    at = data.index(b"IDAT") - 4
    return data[:at] + pictures.png_chunk(name, content) + data[at:]


def broken(data, name):
    """The file with a wrong checksum of a chunk."""
    at = data.index(name)
    (length,) = struct.unpack_from(">I", data, at - 4)
    return data[: at + 4 + length] + b"oops" + data[at + 8 + length :]


@pytest.mark.parametrize(
    "name", [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"pHYs", b"gAMA", b"tIME"]
)
def test_a_wrong_checksum_of_metadata_costs_only_them(name):
    data = broken(with_chunk(name, b"key\0\0" + zlib.compress(bytes(99))), name)
    picture = decode(data)
    assert np.array_equal(picture.pixels, GREY)
    assert name.decode() in picture.note


def test_text_that_a_reader_refuses_costs_only_itself():
    bomb = b"key\0\0" + zlib.compress(bytes(2 * PngImagePlugin.MAX_TEXT_CHUNK))
    picture = decode(with_chunk(b"zTXt", bomb))
    assert np.array_equal(picture.pixels, GREY)
    assert "zTXt" in picture.note
    assert decode(pictures.encoded(GREY)).note == ""


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT", b"tRNS", b"acTL"])
def test_a_wrong_checksum_of_what_makes_the_pixels_costs_the_picture(name):
    data = with_chunk(b"tRNS", b"\0\5")
    if name == b"acTL":
        data = with_chunk(b"acTL", struct.pack(">II", 1, 0), data)
    with pytest.raises(Failure, match="unreadable: damaged"):
        decode(broken(data, name))


def test_an_intact_rotation_is_kept_when_other_metadata_are_damaged():
    lying = np.ascontiguousarray(np.rot90(GREY, 1))
    rotated = pictures.exif_rotated(lying, 6, "PNG")
    picture = decode(broken(with_chunk(b"tEXt", b"a\0b", rotated), b"tEXt"))
    assert np.array_equal(picture.pixels, GREY)
    assert picture.note


def test_damaged_exif_data_cost_the_rotation_and_a_note():
    picture = decode(with_chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + bytes(30)))
    assert picture.pixels.shape in {GREY.shape, GREY.T.shape}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_values_beyond_the_depth_of_the_settings_are_refused(channels):
    values = DEEP[..., :channels] >> 4
    twelve = DecodeSettings(bit_depth=12)
    assert decode(pictures.deep_png(values), twelve).bit_depth == 12
    values[0, 0, 0] = 4096
    with pytest.raises(Failure, match="unsupported: its values reach 4096, more than the 4095"):
        decode(pictures.deep_png(values), twelve)


def test_alpha_has_sixteen_bits_or_the_depth_of_the_settings():
    twelve = DecodeSettings(bit_depth=12)
    values = DEEP >> 4
    for opaque in (65535, 4095):
        values[..., 3] = opaque
        assert np.array_equal(decode(pictures.deep_png(values), twelve).pixels, values[..., :3])


def test_a_transparent_value_of_deep_grey_becomes_black():
    clear = pictures.png_chunk(b"tRNS", struct.pack(">H", int(DEEP[2, 3, 0])))
    expected = DEEP[..., 0].copy()
    expected[2, 3] = 0
    assert np.array_equal(decode(pictures.deep_png(DEEP[..., :1], clear)).pixels, expected)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_transparent_grey_of_a_shallow_picture_is_the_stored_one(depth):
    values = np.arange(24).reshape(4, 6) % 2**depth
    bits = (values[..., None] >> np.arange(depth)[::-1] & 1).reshape(4, -1).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    clear = pictures.png_chunk(b"tRNS", b"\0\1")
    data = pictures.png_by_hand(6, 4, depth, 0, rows, clear)
    expected = np.where(values == 1, 0, values * (255 // (2**depth - 1)))
    assert np.array_equal(decode(data).pixels, expected)
