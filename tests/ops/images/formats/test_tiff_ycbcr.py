"""YCbCr that is not compressed as JPEG."""

import math
import struct
import zlib

import numpy as np
import pytest

from ops.failure import Failure
from ops.images.decode import decode
from tests import tiffs

YCBCR = np.random.default_rng(0).integers(0, 256, (19, 13, 3), dtype=np.uint8)
SHARES, COEFFICIENTS, REFERENCE = 530, 529, 532


def to_rgb(samples, luma=(0.299, 0.587, 0.114)):
    y, cb, cr = (samples[..., n].astype(float) for n in range(3))
    r = (cr - 128) * (2 - 2 * luma[0]) + y
    b = (cb - 128) * (2 - 2 * luma[2]) + y
    g = (y - luma[0] * r - luma[2] * b) / luma[1]
    return np.rint(np.stack([r, g, b], -1)).clip(0, 255)


def subsampled(samples, across, down, high):
    """Strips of `high` rows, each of data units: brightness of their pixels, then Cb and Cr."""
    strips = []
    for top in range(0, len(samples), high):
        strip = samples[top : top + high]
        short = (-strip.shape[0] % down, -strip.shape[1] % across)
        strip = np.pad(strip, ((0, short[0]), (0, short[1]), (0, 0)), mode="edge")
        units = []
        for y in range(0, strip.shape[0], down):
            for x in range(0, strip.shape[1], across):
                unit = strip[y : y + down, x : x + across]
                units += [unit[..., 0].tobytes(), unit[0, 0, 1:].tobytes()]
        strips.append(b"".join(units))
    return strips


def shared(across, down, high=8, compression="none", order="<"):
    """A file, and its samples with the colours of the first pixel of each unit."""
    rows, columns = np.arange(19) // down * down, np.arange(13) // across * across
    samples = YCBCR.copy()
    samples[..., 1:] = YCBCR[rows][:, columns, 1:]
    pack = zlib.compress if compression == "deflate" else bytes
    whole = tiffs.page(YCBCR, 8, 6, compression=compression, rows=high, order=order)
    whole[1][SHARES] = (3, [across, down])
    blocks = [pack(strip) for strip in subsampled(YCBCR, across, down, high)]
    return tiffs.file((blocks, *whole[1:]), order=order), samples


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("layout", [{}, {"rows": 5}, {"tile": (16, 16)}], ids=str)
def test_colours_of_every_pixel(planar, layout):
    data = tiffs.one(YCBCR, 8, 6, planar=planar, tags={SHARES: (3, [1, 1])}, **layout)
    assert np.array_equal(decode(data).pixels, to_rgb(YCBCR))


@pytest.mark.parametrize("shares", [(2, 1), (1, 2), (2, 2), (4, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize(("compression", "order"), [("none", "<"), ("deflate", ">")])
def test_colours_that_pixels_share(shares, compression, order):
    data, samples = shared(*shares, compression=compression, order=order)
    assert np.array_equal(decode(data).pixels, to_rgb(samples))


def test_other_coefficients_and_ranges_as_libtiff_has_them():
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    hd = struct.pack("<6I", 2126, 10000, 7152, 10000, 722, 10000)
    video = struct.pack("<12I", 15, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1)
    for tag, content, most in ((COEFFICIENTS, hd, 1), (REFERENCE, video, 3)):
        tags = {SHARES: (3, [1, 1]), tag: (5, content)}
        data = tiffs.one(YCBCR, 8, 6, tags=tags)
        theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
        assert np.abs(decode(data).pixels.astype(int) - theirs).max() <= most
    rgb = decode(tiffs.one(YCBCR, 8, 6, tags={SHARES: (3, [1, 1]), COEFFICIENTS: (5, hd)})).pixels
    assert np.array_equal(rgb, to_rgb(YCBCR, (0.2126, 0.7152, 0.0722)))


def test_data_that_do_not_suit_the_tag_are_unreadable():
    with pytest.raises(Failure, match="holds 741 bytes, and colours subsampled 2 x 2 need 420"):
        decode(tiffs.one(YCBCR, 8, 6, compression="deflate"))  # without the tag they are 2 x 2
    assert math.ceil(19 / 2) * math.ceil(13 / 2) * 6 == 420
    with pytest.raises(Failure, match="subsampled 3 x 1"):
        decode(tiffs.one(YCBCR, 8, 6, tags={SHARES: (3, [3, 1])}))


def test_what_is_not_read_is_named():
    with pytest.raises(Failure, match="unsupported: it is a TIFF of subsampled YCbCr in planes"):
        decode(tiffs.one(YCBCR, 8, 6, planar=2))
    with pytest.raises(Failure, match="unsupported: it is a TIFF of 4 samples of YCbCr"):
        decode(tiffs.one(np.dstack([YCBCR, YCBCR[..., :1]]), 8, 6))
