"""A JPEG that lost bytes is unreadable; an intact one keeps its pixels."""

import io
import itertools

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from ops.failure import Failure
from ops.images.decode import decode
from ops.images.formats import jpeg
from tests import pictures

COLOUR = pictures.texture(1, 120, colour=True)
SIZES = ((1, 1), (7, 9), (8, 8), (16, 16), (17, 33), (64, 40), (120, 120))


def plain(data: bytes) -> np.ndarray:
    """The pixels that Pillow decodes."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image if image.mode in {"L", "RGB"} else image.convert("RGB"))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("quality", [5, 75, 100])
def test_whole_files_keep_their_pixels(mode, quality):
    for (w, h), sub, rst in itertools.product(SIZES, (0, 1, 2), (0, 1, 7)):
        for pixels in (COLOUR[:h, :w], np.full((h, w, 3), 90, np.uint8)):
            image = Image.fromarray(pixels).convert(mode)
            options = {"subsampling": sub, "restart_marker_blocks": rst, "optimize": rst == 1}
            data = pictures.encoded(image, "JPEG", quality=quality, **options)
            assert jpeg.without_end_mark(data)
            assert np.array_equal(decode(data).pixels, plain(data))


@pytest.mark.parametrize("lost", [30, 100, 1500])
@pytest.mark.parametrize("rst", [0, 4])
def test_bytes_lost_before_the_end_mark_make_it_unreadable(lost, rst):
    data = pictures.encoded(COLOUR, "JPEG", quality=90, restart_marker_blocks=rst)
    assert plain(data[:-lost] + b"\xff\xd9").shape == COLOUR.shape  # filled up with grey
    with pytest.raises(Failure, match=r"unreadable: damaged .*truncated"):
        decode(data[:-lost] + b"\xff\xd9")


def test_a_header_with_too_many_rows_makes_it_unreadable():
    data = pictures.encoded(COLOUR, "JPEG")
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(Failure, match=r"unreadable: damaged .*truncated"):
        decode(data[:at] + b"\x00\xa0" + data[at + 2 :])


def test_an_impossible_size_is_refused_before_memory_is_allocated():
    for options in ({}, {"progressive": True}):
        data = pictures.encoded(COLOUR, "JPEG", **options)
        at = data.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
        with pytest.raises(Failure, match="cannot hold 11000 x 12000 pixels"):
            decode(data[:at] + b"\x2e\xe0\x2a\xf8" + data[at + 4 :])


def test_progressive_files_and_data_after_the_end_mark_are_kept():
    data = pictures.encoded(COLOUR, "JPEG", progressive=True)
    assert jpeg.without_end_mark(data) is None
    assert np.array_equal(decode(data).pixels, plain(data))
    whole = pictures.encoded(COLOUR, "JPEG")
    assert np.array_equal(decode(whole + whole[50:]).pixels, plain(whole))


def test_an_embedded_preview_is_not_decoded():
    exif = Image.Exif()
    exif[0x927C] = pictures.encoded(COLOUR[:30, :40], "JPEG")  # as makers' notes hold them
    data = pictures.encoded(COLOUR, "JPEG", exif=exif)
    assert data.count(b"\xff\xd9") == 2
    assert np.array_equal(decode(data).pixels, plain(data))


LARGE = Image.fromarray(COLOUR[:3, :5]).resize((500, 301), Image.Resampling.BICUBIC)


def small(data: bytes, least_side: int) -> np.ndarray:
    """The pixels for a view of so many pixels, beside the file's own at that size."""
    seen = decode(data, least_side=least_side)
    whole = decode(data)
    assert seen[1:] == whole[1:]
    resized = Image.fromarray(whole.pixels).resize((seen.width, seen.height), Image.Resampling.BOX)
    assert np.abs(np.asarray(resized, int) - seen.pixels).mean() < 2
    return seen.pixels


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_for_a_view_a_file_is_decoded_at_a_fraction_of_its_size(mode, progressive):
    data = pictures.encoded(LARGE.convert(mode), "JPEG", quality=95, progressive=progressive)
    colours = () if mode == "L" else (3,)
    fractions = {500: 1, 251: 1, 250: 2, 126: 2, 125: 4, 64: 4, 63: 8, 5: 8, 1: 8, 5000: 1}
    for least_side, fraction in fractions.items():
        height, width = -(-301 // fraction), -(-500 // fraction)
        assert small(data, least_side).shape == (height, width, *colours)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_fraction_is_upright_too(orientation):
    pixels = np.asarray(LARGE).copy()
    pixels[:100, :100] = 255
    shape = (151, 250, 3) if orientation < 5 else (250, 151, 3)
    assert small(pictures.exif_rotated(pixels, orientation, "JPEG"), 250).shape == shape


def test_the_first_picture_of_several_is_decoded_at_a_fraction_of_its_size():
    preview = Image.fromarray(COLOUR[:30, :40])
    data = pictures.encoded(LARGE, "MPO", save_all=True, append_images=[preview], quality=95)
    assert small(data, 200).shape == (151, 250, 3)


def test_bytes_lost_are_noticed_at_a_fraction_of_the_size_too():
    data = pictures.encoded(LARGE, "JPEG", quality=90)
    for lost in (30, 1500):
        with pytest.raises(Failure, match=r"unreadable: damaged .*truncated"):
            decode(data[:-lost] + b"\xff\xd9", least_side=50)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xda\0\0", b"\xff\xd8" * 40])
def test_data_that_are_not_a_jpeg_have_no_scan(data):
    assert jpeg.without_end_mark(data) is None


DEEP = np.random.default_rng(0).integers(0, 65536, (37, 21, 3), dtype=np.uint16)


def lossless(values: np.ndarray, depth: int) -> bytes:
    return bytes(imagecodecs.ljpeg_encode(values, bitspersample=depth))


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_lossless_jpeg_and_jpeg_ls_keep_every_bit(depth):
    values = (DEEP[..., 0] >> (16 - depth)).astype(np.uint8 if depth == 8 else np.uint16)
    files = [lossless(values, depth)]
    if depth in {8, 16}:  # this encoder knows no others
        files.append(bytes(imagecodecs.jpegls_encode(values)))
    for data in files:
        picture = decode(data)
        assert picture.bit_depth == depth
        assert np.array_equal(picture.pixels, values)
        with pytest.raises(Failure, match="unreadable: damaged"):
            decode(data[: len(data) // 2])


@pytest.mark.parametrize("channels", [1, 3])
def test_twelve_bits_are_read_and_lost_bytes_are_noticed(channels):
    soft = pictures.texture(2, 64, colour=True).astype(np.uint16) << 4
    values = soft if channels == 3 else np.ascontiguousarray(soft[..., 0])
    data = bytes(imagecodecs.jpeg8_encode(values, level=98, bitspersample=12))
    picture = decode(data)
    assert picture.bit_depth == 12
    assert (
        np.abs(picture.pixels.astype(int) - values).mean() < 40
    )  # of 4095; colours are subsampled
    for cut in (data[: len(data) // 2], data[:-300] + b"\xff\xd9"):
        with pytest.raises(Failure, match="unreadable: damaged"):
            decode(cut)


def test_damaged_metadata_cost_only_themselves():
    whole = pictures.encoded(COLOUR, "JPEG", quality=90)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\xff\xff"
    block = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    picture = decode(whole[:2] + block + whole[2:])
    assert np.array_equal(picture.pixels, plain(whole))
