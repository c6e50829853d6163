"""JPEG 2000 of any depth keeps its bits and declares its depth."""

import imagecodecs
import numpy as np
import pytest

from ops.failure import Failure
from ops.images.decode import DecodeSettings, decode

COLOUR = np.random.default_rng(0).integers(0, 65536, (40, 30, 3), dtype=np.uint16)


def jp2(values, depth, **options):
    kind = np.uint8 if depth <= 8 else np.uint16
    codec = {"codecformat": "jp2", "reversible": True, "level": 0, "bitspersample": depth}
    return bytes(imagecodecs.jpeg2k_encode(values.astype(kind), **codec | options))


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_depth_keeps_its_values(channels, depth, codec):
    values = (COLOUR if channels == 3 else COLOUR[..., 0]) >> (16 - depth)
    picture = decode(jp2(values, depth, codecformat=codec))
    assert picture.bit_depth == depth
    assert np.array_equal(picture.pixels, values)


def test_a_declared_depth_is_its_own_and_sixteen_bits_are_checked():
    twelve = DecodeSettings(bit_depth=12)
    assert decode(jp2(COLOUR >> 2, 14), twelve).bit_depth == 14
    assert decode(jp2(COLOUR >> 4, 16), twelve).bit_depth == 12
    with pytest.raises(Failure, match="unsupported: its values reach"):
        decode(jp2(COLOUR, 16), twelve)


def test_a_truncated_file_is_unreadable_and_a_large_one_is_not_decoded():
    data = jp2(COLOUR, 12 + 4)
    with pytest.raises(Failure, match="unreadable: damaged"):
        decode(data[: len(data) // 2])
    at = data.index(b"\xff\x4f\xff\x51") + 8
    asked = []
    with pytest.raises(Failure, match="too_large: 60000 x 60000"):
        decode(data[:at] + b"\0\0\xea\x60" * 2 + data[at + 8 :], admit=asked.append)
    assert not asked


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_signed_values_are_unsupported(kind):
    values = np.arange(-60, 60, dtype=kind).reshape(10, 12)
    with pytest.raises(Failure, match=r"unsupported: .* signed channels of"):
        decode(bytes(imagecodecs.jpeg2k_encode(values, level=0, reversible=True)))
