"""The pixels or the failure of every kind of file."""

import random
import struct

import numpy as np
import pytest
from PIL import Image

from ops.archives.listing import IMAGE_SUFFIXES
from ops.errors import UserError
from ops.failure import Failure
from ops.images import decode as decode_module
from ops.images.decode import DecodeSettings, Picture, decode
from ops.images.formats import pillow_files
from tests import pictures

GREY = pictures.texture(0, 32)[:, :20]
COLOUR = pictures.texture(1, 32, colour=True)[:, :20]
DEEP = np.random.default_rng(0).integers(0, 65536, (7, 5, 3), dtype=np.uint16)


def status_of(data: bytes, settings: DecodeSettings = DecodeSettings()) -> str:
    with pytest.raises(Failure) as failure:
        decode(data, settings)
    assert failure.value.reason
    return failure.value.status


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_files_give_their_pixels(kind):
    picture = decode(pictures.encoded(GREY, kind))
    values = picture.pixels if picture.pixels.ndim == 2 else picture.pixels[..., 0]
    assert np.array_equal(values, GREY)
    assert (picture.width, picture.height, picture.bit_depth) == (20, 32, 8)
    if kind != "GIF":  # a palette of its own
        assert np.array_equal(decode(pictures.encoded(COLOUR, kind)).pixels, COLOUR)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000", "AVIF", "MPO"])
def test_lossy_files_give_nearly_their_pixels(kind):
    picture = decode(pictures.encoded(COLOUR, kind, quality=95))
    assert picture.pixels.shape == COLOUR.shape
    assert np.abs(picture.pixels.astype(int) - COLOUR).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP", "JPEG2000"])
def test_other_kinds_than_jpeg_keep_their_size_for_a_view(kind):
    data = pictures.encoded(COLOUR, kind)
    assert np.array_equal(decode(data, least_side=2).pixels, decode(data).pixels)
    deep = pictures.deep_png(DEEP)
    assert np.array_equal(decode(deep, least_side=1).pixels, DEEP)


def test_pillow_can_open_every_format_that_is_tried():
    Image.init()  # a name unknown to it would make every format behind it unreadable
    assert set(pillow_files.FORMATS) <= set(Image.OPEN)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_a_truncated_file_is_unreadable(kind):
    data = pictures.encoded(COLOUR, kind)
    assert status_of(data[: len(data) // 2]) == "unreadable"


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"hello, world", b"\x89PNG\r\n\x1a\n", bytes(10_000)],
    ids=["empty", "zero", "text", "png signature", "zeros"],
)
def test_a_file_that_is_not_an_image_is_unreadable(data):
    assert status_of(data) == "unreadable"


def test_a_png_whose_tail_was_never_written_is_unreadable():
    data = pictures.encoded(COLOUR)
    for start in range(200, len(data) - 1, 37):  # zeros may well be codes
        assert status_of(data[:start] + bytes(len(data) - start)) == "unreadable"


def test_a_png_without_its_end_is_unreadable():
    for data in (pictures.encoded(GREY), pictures.deep_png(DEEP)):
        assert status_of(data[:-12]) == status_of(data[:-5]) == "unreadable"


def test_a_png_without_a_palette_before_its_data_is_unreadable():
    image = Image.new("P", (4, 3), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    data = pictures.encoded(image)
    start, end = data.index(b"PLTE") - 4, data.index(b"IDAT") - 4
    palette, iend = data[start:end], data.index(b"IEND") - 4
    assert status_of(data[:start] + data[end:]) == "unreadable"
    late = data[:start] + data[end:iend] + palette + data[iend:]
    assert status_of(late) == "unreadable"


def test_an_image_without_pixels_is_unreadable():
    for width, height in ((0, 0), (0, 5), (5, 0)):
        assert status_of(pictures.png_by_hand(width, height, 8, 0, b"")) == "unreadable"


def test_a_decompression_bomb_is_too_large_before_it_is_decoded():
    assert status_of(pictures.png_by_hand(60_000, 60_000, 8, 2, b"")) == "too_large"
    assert status_of(pictures.png_by_hand(12_000, 12_000, 8, 0, b"")) == "too_large"


def test_admit_is_called_before_decoding_and_may_refuse():
    asked = []
    decode(pictures.encoded(GREY), admit=asked.append)
    decode(pictures.deep_png(DEEP), admit=asked.append)
    assert asked == [640, 35]
    with pytest.raises(Failure):
        decode(pictures.png_by_hand(60_000, 60_000, 8, 2, b""), admit=asked.append)
    assert len(asked) == 2


def test_max_pixels_is_exact():
    data = pictures.encoded(GREY)
    assert decode(data, DecodeSettings(max_pixels=640)).width == 20
    assert status_of(data, DecodeSettings(max_pixels=639)) == "too_large"


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "I;16"])
def test_a_tiff_whose_strips_end_before_the_picture_is_unreadable(mode):
    image = Image.fromarray(DEEP[..., 0]) if mode == "I;16" else Image.new(mode, (20, 32), 5)
    data = bytearray(pictures.encoded(image, "TIFF"))
    assert decode(bytes(data)).height == image.height
    start = struct.unpack_from("<I", data, 4)[0]
    (entry,) = [
        at
        for at in range(start + 2, start + 2 + 12 * data[start], 12)
        if struct.unpack_from("<H", data, at)[0] == 257
    ]
    struct.pack_into("<HII", data, entry + 2, 4, 1, 4000)
    with pytest.raises(Failure, match="unreadable: damaged"):
        decode(bytes(data))


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"strip_size": 128}])
def test_a_tiff_of_many_strips_is_whole(options):
    pixels = pictures.texture(3, 100, colour=True)[:61]
    assert np.array_equal(decode(pictures.encoded(pixels, "TIFF", **options)).pixels, pixels)


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # cyan
    pixels = decode(pictures.encoded(image, "JPEG", quality=95)).pixels
    assert pixels.shape == (16, 16, 3)
    assert np.allclose(pixels, [0, 255, 255], atol=6)


def test_a_palette_becomes_its_colours():
    image = Image.new("P", (4, 3), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    assert np.array_equal(
        decode(pictures.encoded(image)).pixels, np.full((3, 4, 3), [200, 100, 50])
    )


def test_a_transparent_palette_entry_becomes_black():
    image = Image.new("P", (2, 1), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.putpixel((0, 0), 0)
    pixels = decode(pictures.encoded(image, transparency=0)).pixels
    assert pixels.tolist() == [[[0, 0, 0], [200, 100, 50]]]


@pytest.mark.parametrize("alpha", [0, 1, 127, 255])
def test_transparency_is_blended_with_black(alpha):
    rgba = np.dstack([COLOUR, np.full(COLOUR.shape[:2], alpha, np.uint8)])
    pixels = decode(pictures.encoded(rgba)).pixels
    assert pixels.shape == COLOUR.shape
    assert np.abs(pixels - COLOUR * (alpha / 255)).max() <= 1


def test_grey_with_transparency_stays_grey():
    image = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (20, 32), 128)])
    pixels = decode(pictures.encoded(image)).pixels
    assert pixels.shape == GREY.shape
    assert np.abs(pixels - GREY * (128 / 255)).max() <= 1
    keyed = decode(pictures.encoded(GREY, transparency=int(GREY[3, 3]))).pixels
    assert np.array_equal(keyed, np.where(GREY[3, 3] == GREY, 0, GREY))


def test_one_bit_becomes_black_and_white():
    pixels = decode(pictures.encoded(GREY > 120)).pixels
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.where(GREY > 120, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_deep_grey_keeps_every_bit(kind):
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    picture = decode(pictures.encoded(DEEP[..., 0], kind, **options))
    assert picture.pixels.dtype == np.uint16
    assert np.array_equal(picture.pixels, DEEP[..., 0])
    assert picture.bit_depth == 16


def test_deep_colour_png_keeps_every_bit():
    picture = decode(pictures.deep_png(DEEP))
    assert picture.pixels.dtype == np.uint16
    assert np.array_equal(picture.pixels, DEEP)
    assert picture.bit_depth == 16


def test_deep_transparency_is_blended_with_black():
    alpha = np.full((7, 5, 1), 0x8000, np.uint16)
    expected = np.rint(DEEP * (0x8000 / 65535))
    colour = decode(pictures.deep_png(np.dstack([DEEP, alpha]))).pixels
    assert np.array_equal(colour, expected)
    grey = decode(pictures.deep_png(np.dstack([DEEP[..., :1], alpha]))).pixels
    assert np.array_equal(grey, expected[..., 0])


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colour_with_too_few_rows_does_not_crash(channels):
    # Every checksum is right. Decoders in C have answered this with a segmentation fault.
    colour = {2: 4, 3: 2, 4: 6}[channels]
    assert status_of(pictures.png_by_hand(5, 7, 16, colour, b"")) == "unreadable"
    assert status_of(pictures.png_by_hand(5, 7, 16, colour, b"\x09" + bytes(999))) == "unreadable"
    rows = (b"\0" + b"\xff" * 10 * channels) * 6
    pixels = decode(pictures.png_by_hand(5, 7, 16, colour, rows)).pixels
    assert (pixels[:6] == 65535).all()
    assert (pixels[6] == 0).all()  # and no other picture's


def test_a_png_of_too_few_bytes_for_its_size_takes_no_memory():
    asked = []
    with pytest.raises(Failure, match="cannot hold 11000 x 12000 pixels of a PNG"):
        decode(pictures.png_by_hand(11_000, 12_000, 1, 0, bytes(40)), admit=asked.append)
    assert not asked
    flat = np.zeros((2000, 2000), bool)
    assert decode(pictures.encoded(flat)).pixels.shape == (2000, 2000)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colour_is_read_through_every_filter(channels):
    """PNG, 9.2: each byte less that of the pixel before it, of the row above, or of both."""
    values = np.random.default_rng(1).integers(0, 65536, (10, 9, channels), dtype=np.uint16)
    if channels != 3:
        values[..., -1] = 65535  # opaque
    step = 2 * channels
    raw = values.astype(">u2").view(np.uint8).reshape(10, 9 * step).astype(int)
    left, above = np.zeros_like(raw), np.zeros_like(raw)
    left[:, step:], above[1:] = raw[:, :-step], raw[:-1]
    corner = np.zeros_like(raw)
    corner[1:, step:] = raw[:-1, :-step]
    guess = left + above - corner
    near = np.abs(np.stack([left, above, corner]) - guess).argmin(0)
    paeth = np.choose(near, [left, above, corner])
    filters = [np.zeros_like(raw), left, above, (left + above) // 2, paeth]
    rows = b"".join(
        bytes([y % 5]) + ((raw[y] - filters[y % 5][y]) % 256).astype(np.uint8).tobytes()
        for y in range(10)
    )
    data = pictures.png_by_hand(9, 10, 16, {2: 4, 3: 2, 4: 6}[channels], rows)
    expected = values if channels == 3 else values[..., :-1].squeeze()
    assert np.array_equal(decode(data).pixels, expected)


def test_a_transparent_deep_colour_becomes_black():
    clear = pictures.png_chunk(b"tRNS", DEEP[3, 2].astype(">u2").tobytes())
    expected = DEEP.copy()
    expected[3, 2] = 0
    assert np.array_equal(decode(pictures.deep_png(DEEP, clear)).pixels, expected)


def test_a_png_whose_header_does_not_come_first_is_unreadable():
    data = pictures.encoded(GREY)
    start, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    text = pictures.png_chunk(b"tEXt", b"a\0b")
    assert status_of(data[:8] + text + data[8:]) == "unreadable"
    assert status_of(data[:8] + data[start:end] + data[8:start] + data[end:]) == "unreadable"


def test_damaged_deep_colour_is_unreadable():
    data = bytearray(pictures.deep_png(DEEP))
    data[data.index(b"IDAT") + 30] ^= 0xFF
    assert status_of(bytes(data)) == "unreadable"
    assert status_of(pictures.deep_png(DEEP)[:-60]) == "unreadable"


def test_bit_depth_of_the_settings_scales_twelve_bits_in_sixteen():
    twelve = (DEEP >> 4).astype(np.uint16)
    settings = DecodeSettings(bit_depth=12)
    grey = decode(pictures.encoded(twelve[..., 0]), settings)
    colour = decode(pictures.deep_png(twelve), settings)
    assert (grey.bit_depth, colour.bit_depth) == (12, 12)
    assert np.array_equal(grey.pixels, twelve[..., 0])
    assert np.array_equal(colour.pixels, twelve)
    assert decode(pictures.encoded(GREY), DecodeSettings(bit_depth=12)).bit_depth == 8


def test_a_tiff_declares_its_depth_by_its_largest_value():
    twelve = (DEEP[..., 0] >> 4).astype(np.uint16)
    picture = decode(pictures.encoded(twelve, "TIFF", tiffinfo={281: 4095}))
    assert picture.bit_depth == 12
    assert np.array_equal(picture.pixels, twelve)


def test_a_pgm_of_twelve_bits_is_scaled_by_the_depth_in_its_header():
    twelve = (DEEP[..., 0] >> 4).astype(">u2")
    data = b"P5 5 7 4095\n" + twelve.tobytes()
    for settings in (DecodeSettings(), DecodeSettings(bit_depth=12)):
        picture = decode(data, settings)
        exchanges = picture.pixels / (2**picture.bit_depth - 1)
        assert np.allclose(exchanges, twelve / 4095, atol=1e-4)


@pytest.mark.parametrize("depth", [8, 0, 17])
def test_a_depth_that_sixteen_bit_files_cannot_have_is_refused(depth):
    with pytest.raises(UserError, match="between 9 and 16"):
        DecodeSettings(bit_depth=depth)


#: EXIF orientation -> how an upright array has to be turned to lie in the file.
LYING = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", LYING)
@pytest.mark.parametrize("upright", [GREY, COLOUR, DEEP[..., 0]], ids=["grey", "colour", "deep"])
def test_pictures_are_turned_upright(orientation, upright):
    lying = np.ascontiguousarray(LYING[orientation](upright))
    picture = decode(pictures.exif_rotated(lying, orientation, "PNG"))
    assert np.array_equal(picture.pixels, upright)
    assert (picture.height, picture.width) == upright.shape[:2]


def test_photographs_are_turned_upright():
    lying = np.ascontiguousarray(np.rot90(COLOUR, 1))
    picture = decode(pictures.exif_rotated(lying, 6, "JPEG"))
    assert picture.pixels.shape == COLOUR.shape
    assert np.abs(picture.pixels.astype(int) - COLOUR).mean() < 6


def test_deep_colour_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = pictures.png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    lying = np.ascontiguousarray(np.rot90(DEEP, 1))
    assert np.array_equal(decode(pictures.deep_png(lying, chunk)).pixels, DEEP)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_or_pages_are_unsupported(kind):
    assert status_of(pictures.animated(kind)) == "unsupported"
    assert decode(pictures.animated(kind, frames=1)).pixels.shape == (24, 24, 3)


def test_a_photograph_with_a_preview_behind_it_is_one_picture():
    picture = decode(pictures.animated("MPO", frames=2))
    assert picture.pixels.shape == (24, 24, 3)


def test_floating_point_is_unsupported():
    assert status_of(pictures.encoded(GREY.astype(np.float32), "TIFF")) == "unsupported"


def test_values_beyond_sixteen_bits_are_unsupported_and_others_are_kept():
    wide = np.array([[0, 70_000]], np.int32)
    assert status_of(pictures.encoded(wide, "TIFF")) == "unsupported"
    assert status_of(pictures.encoded(-wide, "TIFF")) == "unsupported"
    small = decode(pictures.encoded(wide // 2, "TIFF"))
    assert (small.pixels.tolist(), small.bit_depth) == ([[0, 35_000]], 16)


def test_large_pictures_within_the_limit_raise_no_warning(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert decode(pictures.encoded(GREY)).width == 20
    assert not recwarn.list


def corpus() -> dict[str, bytes]:
    return {
        "png": pictures.encoded(COLOUR),
        "deep png": pictures.deep_png(DEEP),
        "grey png": pictures.encoded(DEEP[..., 0]),
        "jpeg": pictures.encoded(COLOUR, "JPEG"),
        "tiff": pictures.encoded(COLOUR, "TIFF"),
        "packed tiff": pictures.encoded(GREY, "TIFF", compression="tiff_lzw"),
        "bmp": pictures.encoded(GREY, "BMP"),
        "webp": pictures.encoded(COLOUR, "WEBP"),
        "gif": pictures.encoded(COLOUR, "GIF"),
    }


@pytest.mark.parametrize("kind", corpus())
def test_any_damage_gives_a_picture_or_a_failure_and_nothing_else(kind):
    data, rng = corpus()[kind], random.Random(kind)
    failures = 0
    for _ in range(40):
        try:
            picture = decode(pictures.mangled(data, rng), DecodeSettings(max_pixels=2**20))
        except Failure:
            failures += 1
        else:
            assert isinstance(picture, Picture)
            assert picture.pixels.dtype in (np.uint8, np.uint16)
            assert picture.pixels.size > 0
            assert (picture.pixels.dtype == np.uint8) == (picture.bit_depth <= 8)
    assert failures


def bmp(pixels: bytes, masks: tuple[int, ...]) -> bytes:
    """A BMP of 2 x 1 pixels of 32 bits with bit fields (BITMAPV4HEADER)."""
    info = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    info += struct.pack("<4I", *masks) + bytes(52)
    return struct.pack("<2sIHHI", b"BM", 122 + len(pixels), 0, 0, 122) + info + pixels


def test_a_bmp_whose_alpha_was_never_set_is_opaque():
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    unset = decode(bmp(bytes([3, 2, 1, 0, 6, 5, 4, 0]), masks))
    assert unset.pixels.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    half = decode(bmp(bytes([3, 2, 1, 0, 6, 5, 4, 255]), masks))
    assert half.pixels.tolist() == [[[0, 0, 0], [4, 5, 6]]]


def test_a_bmp_of_ten_bits_a_channel_is_unsupported_by_name():
    with pytest.raises(Failure, match="unsupported: it is a BMP that is not read"):
        decode(bmp(bytes(8), (0x3FF00000, 0xFFC00, 0x3FF, 0)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP"])
def test_files_without_pages_have_one_and_no_range(kind):
    data = pictures.encoded(COLOUR, kind)
    settings = DecodeSettings(bit_depth=12, page=1, range="0,1")
    assert np.array_equal(decode(data, settings).pixels, decode(data).pixels)
    with pytest.raises(Failure, match=r"which has 1 page, so there is no --decode\.page 2"):
        decode(data, DecodeSettings(page=2))


def test_files_of_every_kind_that_is_read_are_listed():
    usual = {
        **{"PNG": ".png", "JPEG": ".jpg .jls", "JPEG 2000": ".jp2 .j2k", "JPEG XL": ".jxl"},
        **{"HEIC": ".heic .heif", "AVIF": ".avif", "PNM": ".pbm .pgm .ppm .pam .pfm"},
        **{"TIFF": ".tif .tiff", "BMP": ".bmp", "GIF": ".gif", "WebP": ".webp"},
    }
    assert set(usual) == {*decode_module._READERS, *decode_module._PILLOW, "TIFF", "JPEG"}
    assert set(" ".join(usual.values()).split()) <= set(IMAGE_SUFFIXES.split())
