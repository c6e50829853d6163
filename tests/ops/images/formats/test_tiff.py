"""Every kind of TIFF gives its values, or a reason."""

import io
import threading

import numpy as np
import pytest
import tifffile
from PIL import Image

from ops.failure import Failure
from ops.images.decode import DecodeSettings, decode
from tests import pictures, tiffs
from tests.ops.images.formats import tiff_files

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 2**16, (19, 13), dtype=np.uint16)
COLOUR = RNG.integers(0, 2**16, (19, 13, 3), dtype=np.uint16)
MAX = 281


def bits_of(depth, source=GREY):
    return source >> (16 - depth)


def refused(data, settings=DecodeSettings(), status="unsupported"):
    with pytest.raises(Failure) as failure:
        decode(data, settings)
    assert failure.value.status == status, failure.value
    return failure.value.reason


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white", [0, 1])
@pytest.mark.parametrize("depth", [9, 10, 11, 12, 13, 14, 15, 16])
def test_deep_grey_of_every_depth_order_and_polarity(order, white, depth):
    values = bits_of(depth)
    picture = decode(tiffs.one(values, depth, white, order=order))
    expected = values if white else 2**depth - 1 - values
    assert (picture.bit_depth, picture.pixels.dtype) == (depth, np.uint16)
    assert np.array_equal(picture.pixels, expected)


@pytest.mark.parametrize("white", [0, 1])
@pytest.mark.parametrize(("depth", "factor"), [(1, 255), (2, 85), (4, 17), (8, 1)])
def test_shallow_grey_is_scaled_to_eight_bits(white, depth, factor):
    values = bits_of(depth)
    picture = decode(tiffs.one(values, depth, white))
    expected = values * factor if white else 255 - values * factor
    assert (picture.bit_depth, picture.pixels.dtype) == (8, np.uint8)
    assert np.array_equal(picture.pixels, expected)


@pytest.mark.parametrize("depth", [3, 5, 6, 7])
def test_depths_that_do_not_divide_eight_bits_keep_their_own(depth):
    picture = decode(tiffs.one(bits_of(depth), depth))
    assert picture.bit_depth == depth
    assert np.array_equal(picture.pixels, bits_of(depth))


def test_white_is_zero_is_inverted_within_the_depth_of_the_settings():
    picture = decode(tiffs.one(bits_of(12), 16, 0), DecodeSettings(bit_depth=12))
    assert np.array_equal(picture.pixels, 4095 - bits_of(12))


@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd", "lzma"])
@pytest.mark.parametrize("depth", [1, 4, 8, 10, 12, 14, 16])
def test_horizontal_differences_are_summed_within_the_depth(depth, compression):
    values = bits_of(depth, COLOUR)
    data = tiffs.one(values, depth, 2, compression=compression, predictor=2, rows=4)
    factor = {1: 255, 4: 17}.get(depth, 1)
    assert np.array_equal(decode(data).pixels, values * factor)


@pytest.mark.parametrize("compression", ["none", "packbits"])
def test_a_predictor_without_a_compression_for_it_is_refused(compression):
    for depth in (8, 12):
        data = tiffs.one(bits_of(depth), depth, predictor=2, compression=compression)
        assert "readers disagree about its tag Predictor" in refused(data)


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("depth", [8, 12, 16])
@pytest.mark.parametrize("layout", [{}, {"rows": 5}, {"tile": (16, 16)}], ids=str)
def test_colour_keeps_all_bits_contiguous_and_planar(planar, depth, layout):
    values = bits_of(depth, COLOUR)
    data = tiffs.one(values, depth, 2, planar=planar, order=">", big=True, **layout)
    picture = decode(data)
    assert picture.bit_depth == depth
    assert np.array_equal(picture.pixels, values)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_floating_point_is_scaled_by_the_range_of_the_settings(kind, order):
    values = np.linspace(-1, 3, 35, dtype=kind).reshape(5, 7)
    data = tiffs.one(values, values.dtype.itemsize * 8, order=order)
    picture = decode(data, DecodeSettings(range="-1,3"))
    assert picture.bit_depth == 16
    assert np.array_equal(picture.pixels, np.rint((values.astype(float) + 1) / 4 * 65535))
    assert "--decode.range 0,1" in refused(data)
    assert "run from -1 to 3, outside of --decode.range 0,1" in refused(
        data, DecodeSettings(range="0,1")
    )
    values[2, 2] = np.nan
    data = tiffs.one(values, values.dtype.itemsize * 8, order=order)
    assert "NaN" in refused(data, DecodeSettings(range="-1,3"))


@pytest.mark.parametrize("predictor", [2, 3])
def test_floating_point_through_predictors(predictor):
    values = RNG.random((8, 9), dtype=np.float32)
    if predictor == 3:
        data = tiffs.one(values, 32, compression="deflate", predictor=3)
    else:
        whole = tiffs.page(values.view(np.uint32), 32, compression="lzw", predictor=2)
        whole[1][339] = (3, [3])
        data = tiffs.file(whole)
    pixels = decode(data, DecodeSettings(range="0,1")).pixels
    assert np.array_equal(pixels, np.rint(values.astype(float) * 65535))


@pytest.mark.parametrize("depth", [8, 16, 32])
def test_signed_values_are_never_wrapped(depth):
    values = np.array([[-5, 3], [90, 0]])
    reason = refused(tiffs.one(values, depth, sample_format=2))
    assert "signed and run from -5 to 90" in reason


def test_signed_16_bits_without_negative_values_need_a_depth():
    data = tiffs.one(bits_of(12), 16, sample_format=2)
    assert "white is unknown" in refused(data)
    assert np.array_equal(decode(data, DecodeSettings(bit_depth=12)).pixels, bits_of(12))


@pytest.mark.parametrize("depth", [17, 20, 24, 32])
def test_wide_integers_within_16_bits_are_read_and_others_refused(depth):
    assert np.array_equal(decode(tiffs.one(GREY, depth)).pixels, GREY)
    wide = GREY.astype(np.int64)
    wide[1, 1] = 65536
    assert "run from" in refused(tiffs.one(wide, depth))


def test_values_beyond_the_depth_of_the_settings_are_refused():
    twelve = DecodeSettings(bit_depth=12)
    values = bits_of(12).copy()
    assert decode(tiffs.one(values, 16), twelve).bit_depth == 12
    values[0, 0] = 4096
    reason = refused(tiffs.one(values, 16), twelve)
    assert reason == "its values reach 4096, more than the 4095 of --decode.bit_depth 12"
    assert "4095" in refused(tiffs.one(COLOUR, 16, 2), twelve)
    assert decode(tiffs.one(bits_of(10), 10), twelve).bit_depth == 10  # declared by the format


@pytest.mark.parametrize(
    ("largest", "depth"), [(4095, 12), (65535, 16), (40000, 16), (32768, 16), (16383, 14)]
)
def test_the_largest_sample_value_is_a_depth_if_it_can_be_one(largest, depth):
    data = tiffs.one(bits_of(12), 16, tags={MAX: (3, [largest])})
    assert decode(data).bit_depth == depth


@pytest.mark.parametrize("largest", [1471, 255, 4000, 20000])
def test_the_largest_value_of_a_picture_gives_no_scale(largest):
    values = np.minimum(bits_of(12), largest)
    data = tiffs.one(values, 16, tags={MAX: (3, [largest])})
    assert f"({largest}) is not a bit depth" in refused(data)
    picture = decode(data, DecodeSettings(bit_depth=12))
    assert picture.bit_depth == 12
    assert np.array_equal(picture.pixels, values)


def test_a_depth_of_the_file_is_checked_like_that_of_the_settings():
    data = tiffs.one(bits_of(12), 16, tags={MAX: (3, [1023])})
    assert "more than its tag MaxSampleValue (1023)" in refused(data)
    honest = tiffs.one(bits_of(12), 16, tags={MAX: (3, [4095])})
    assert "declares 12 bits" in refused(honest, DecodeSettings(bit_depth=14))
    container = tiffs.one(bits_of(12), 16, tags={MAX: (3, [65535])})
    assert decode(container, DecodeSettings(bit_depth=12)).bit_depth == 12


def several(count, **first):
    return tiffs.file(
        *(tiffs.page(bits_of(8) + n, 8, **(first if n == 0 else {})) for n in range(count))
    )


def test_a_page_is_chosen_by_the_setting_and_never_by_chance():
    data = several(3)
    assert "--decode.page 1" in refused(data)
    for number in (1, 2, 3):
        pixels = decode(data, DecodeSettings(page=number)).pixels
        assert np.array_equal(pixels, (bits_of(8) + number - 1) % 256)
    assert "it has 3 pages, so there is no --decode.page 4" in refused(data, DecodeSettings(page=4))
    assert np.array_equal(decode(several(1), DecodeSettings(page=1)).pixels, bits_of(8))


@pytest.mark.parametrize("tag", [(254, 4, 1), (254, 4, 4), (255, 3, 2)])
def test_previews_levels_and_masks_are_no_pages(tag):
    code, type_, value = tag
    preview = tiffs.page(bits_of(8)[:5], 8, tags={code: (type_, [value])})
    whole = tiffs.page(bits_of(8), 8)
    assert np.array_equal(decode(tiffs.file(whole, preview)).pixels, bits_of(8))
    assert np.array_equal(decode(tiffs.file(preview, whole)).pixels, bits_of(8))
    assert "previews only" in refused(tiffs.file(preview))


def test_planes_that_no_directory_lists_are_not_left_out():
    text = b"ImageJ=1.53\nimages=4\nslices=4\n\0"
    assert "4 planes" in refused(tiffs.one(bits_of(8), 8, tags={270: (2, text)}))
    assert "raw" in refused(tiffs.one(bits_of(8), 8, tags={50706: (1, [1, 4, 0, 0])})).lower()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colour_is_turned_upright(orientation):
    data = tiffs.one(COLOUR, 16, 2, tags={274: (3, [orientation])})
    eight = tiffs.one(COLOUR >> 8, 8, 2, tags={274: (3, [orientation])})
    with Image.open(io.BytesIO(eight)) as image:
        image.load()  # Pillow turns it
        expected = np.asarray(image)
    assert np.array_equal(decode(eight).pixels, expected)
    assert np.array_equal(decode(data).pixels >> 8, expected)


def test_a_palette_keeps_sixteen_bits_where_it_has_them():
    colours = RNG.integers(0, 2**16, (16, 3))
    data = tiffs.one(bits_of(4), 4, 3, tags=tiffs.colour_map(colours))
    assert np.array_equal(decode(data).pixels, colours[bits_of(4)])
    for factor in (257, 256, 1):  # usual, as some write them, and wrongly scaled
        eight = tiffs.one(bits_of(4), 4, 3, tags=tiffs.colour_map((colours >> 8) * factor))
        picture = decode(eight)
        assert (picture.bit_depth, picture.pixels.dtype) == (8, np.uint8)
        assert np.array_equal(picture.pixels, (colours >> 8)[bits_of(4)])


@pytest.mark.parametrize(("kind", "blend"), [(0, False), (1, False), (2, True)])
def test_sixteen_bits_with_alpha(kind, blend):
    alpha = RNG.integers(0, 2**16, (19, 13, 1))
    data = tiffs.one(np.dstack([COLOUR, alpha]), 16, 2, tags={338: (3, [kind])})
    expected = np.floor(COLOUR * (alpha / 65535) + 0.5) if blend else COLOUR
    assert np.array_equal(decode(data).pixels, expected)


def test_eight_bits_with_alpha_of_every_kind_and_place():
    alpha = RNG.integers(0, 256, (19, 13, 2))
    grey, colour = bits_of(8)[..., None], COLOUR >> 8
    straight = np.floor(colour * (alpha[..., 1:] / 255) + 0.5)
    for values, meaning, kinds, expected in (
        (colour, 2, [1], colour),
        (grey, 1, [1], grey[..., 0]),
        (grey, 1, [0], grey[..., 0]),
        (colour, 2, [0, 2], straight),
        (colour, 2, [0, 1], colour),
    ):
        data = tiffs.one(
            np.dstack([values, alpha[..., 2 - len(kinds) :]]), 8, meaning, tags={338: (3, kinds)}
        )
        assert np.array_equal(decode(data).pixels, expected), (meaning, kinds)
    white = tiffs.one(np.dstack([grey, alpha[..., :1]]), 8, 0, tags={338: (3, [1])})
    assert "transparent black is unknown" in refused(white)


@pytest.mark.parametrize("depth", [8, 16])
def test_cmyk_with_alpha_is_blended_with_black(depth):
    inks = RNG.integers(0, 2**depth, (19, 13, 5))
    opaque = decode(tiffs.one(inks[..., :4], depth, 5)).pixels
    data = tiffs.one(inks, depth, 5, tags={338: (3, [2])})
    expected = np.floor(opaque * (inks[..., 4:] / (2**depth - 1)) + 0.5)
    assert np.array_equal(decode(data).pixels, expected)


def test_cmyk_of_sixteen_bits():
    inks = RNG.integers(0, 2**16, (19, 13, 4))
    expected = np.floor((65535 - inks[..., :3]) * ((65535 - inks[..., 3:]) / 65535) + 0.5)
    assert np.array_equal(decode(tiffs.one(inks, 16, 5)).pixels, expected)
    eight = tiffs.one(inks >> 8, 8, 5)
    with Image.open(io.BytesIO(eight)) as image:
        assert np.array_equal(decode(eight).pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("photometric", [32803, 34892])
@pytest.mark.parametrize("depth", [8, 12, 16])
def test_a_colour_filter_array_is_read_as_grey(photometric, depth):
    data = tiffs.one(bits_of(depth), depth, photometric)
    assert np.array_equal(decode(data).pixels, bits_of(depth))


@pytest.mark.parametrize("depth", [8, 12, 16])
def test_jpeg_2000_in_a_tiff(depth):
    out = io.BytesIO()
    codec = {"reversible": True, "level": 0, "bitspersample": depth}
    kind = np.uint8 if depth == 8 else np.uint16
    tifffile.imwrite(
        out, bits_of(depth).astype(kind), compression=34712, compressionargs=codec,
        photometric="minisblack",
    )  # fmt: skip
    assert np.array_equal(decode(out.getvalue()).pixels, bits_of(depth))


@pytest.mark.parametrize("photometric", [8, 9, 10, 32844, 32845, 999])
def test_other_colours_are_unsupported_by_name(photometric):
    assert "with colours" in refused(tiffs.one(COLOUR >> 8, 8, photometric))


@pytest.mark.parametrize("compression", [32809, 34676, 34661, 12345])
def test_an_unknown_compression_is_unsupported(compression):
    data = tiffs.one(bits_of(8), 8, tags={259: (3, [compression])})
    assert "compression" in refused(data)


def test_samples_of_different_depths_and_too_many_are_unsupported():
    assert "differ in depth" in refused(tiffs.one(COLOUR >> 8, 8, 2, tags={258: (3, [8, 8, 4])}))
    many = np.zeros((3, 3, 9), np.uint8)
    assert "9 samples a pixel" in refused(tiffs.one(many, 8))


def test_a_missing_photometric_interpretation_is_noted():
    picture = decode(tiffs.one(bits_of(8), 8, None))
    assert np.array_equal(picture.pixels, bits_of(8))
    assert picture.note.startswith("it lacks tag PhotometricInterpretation")


def test_a_last_strip_that_is_filled_up_is_read():
    filled = np.concatenate([bits_of(8), np.zeros((1, 13), np.uint8)])
    for compression in ("deflate", "lzw", "zstd", "packbits", "none"):
        whole = tiffs.page(filled, 8, rows=5, compression=compression)
        whole[1][257] = (4, [19])
        assert np.array_equal(decode(tiffs.file(whole)).pixels, bits_of(8))


@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "packbits"])
def test_a_size_that_the_bytes_cannot_hold_is_refused_before_memory_is_taken(compression):
    whole = tiffs.page(bits_of(8), 8, compression=compression)
    whole[1].update({256: (4, [11_000]), 257: (4, [12_000]), 278: (4, [12_000])})
    asked = []
    with pytest.raises(Failure, match="cannot hold 11000 x 12000 pixels of a TIFF"):
        decode(tiffs.file(whole), admit=asked.append)
    assert not asked
    whole[1].update({256: (4, [60_000]), 257: (4, [60_000])})
    assert "max_pixels" in refused(tiffs.file(whole), status="too_large")


def test_tiles_larger_than_any_picture_are_refused():
    whole = tiffs.page(bits_of(8), 8, tile=(16, 16), compression="zstd")
    whole[1].update({322: (4, [2**20]), 323: (4, [2**16])})
    assert "tiles" in refused(tiffs.file(whole), status="unreadable")


@pytest.mark.parametrize("change", [{273: (4, [0])}, {273: (4, [10**6])}, {279: (4, [0])}], ids=str)
def test_strips_outside_of_the_file_are_unreadable(change):
    blocks, entries, _ = tiffs.page(bits_of(8), 8)
    offsets = {273: (4, [8]), 279: (4, [len(blocks[0])])}
    # `file` sets the tags of tiles, so that those of strips stay as given here.
    data = tiffs.file((blocks, entries | offsets | change, "tile"))
    data = data.replace(b"\x44\x01\x04\0", b"\xf0\xff\x04\0").replace(
        b"\x45\x01\x04\0", b"\xf1\xff\x04\0"
    )
    reason = refused(data, status="unreadable")
    assert "0 of 1 strips or tiles" in reason or "cannot hold 13 x 19 pixels" in reason


def test_a_tag_that_cannot_be_read_is_not_replaced_by_its_default():
    data = tiffs.one(COLOUR >> 8, 8, 2, compression="deflate")
    at = data.index(b"\x02\x01\x03\0\x03\0\0\0") + 8  # BitsPerSample
    assert "tags [258]" in refused(data[:at] + b"\xff" * 4 + data[at + 4 :], status="unreadable")


def test_other_files_that_a_tiff_names_are_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    xml = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    xml += (
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="13"'
    )
    xml += ' SizeY="19" SizeZ="2" SizeC="1" SizeT="1"><Channel ID="Channel:0:0"/><TiffData IFD="0"'
    xml += (
        ' FirstZ="1"><UUID FileName="other.tif">urn:uuid:1</UUID></TiffData></Pixels></Image></OME>'
    )
    (tmp_path / "other.tif").write_bytes(tiffs.one(255 - bits_of(8), 8))
    opened = []
    monkeypatch.setattr("builtins.open", lambda *args, **_: opened.append(args))
    data = tiffs.one(bits_of(8), 8, tags={270: (2, xml.encode() + b"\0")})
    assert np.array_equal(decode(data).pixels, bits_of(8))
    assert not opened


def test_many_strips_start_no_thread_and_nothing_is_logged(caplog, capfd):
    before = threading.active_count()
    seen = []
    values = np.tile(GREY, (40, 20))
    data = tiffs.one(values, 16, rows=1, compression="zstd", predictor=2)
    decode(data, admit=lambda _: seen.append(threading.active_count()))
    assert threading.active_count() == before == seen[0]
    with pytest.raises(Failure):
        decode(data[: len(data) // 2])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", range(40))
def test_generated_files_give_the_values_that_were_written(number):
    one = tiff_files.made(number)
    assert tiff_files.wrong(one) is None
    assert tiff_files.by_tifffile(one) in {True, None}


@pytest.mark.campaign
@pytest.mark.slow
def test_a_thousand_generated_files_give_the_values_that_were_written():
    files = map(tiff_files.made, range(1000))
    assert [found for one in files if (found := tiff_files.wrong(one))] == []


@pytest.mark.campaign
@pytest.mark.slow
def test_tifffile_reads_generated_files_alike():
    found = [tiff_files.by_tifffile(tiff_files.made(number)) for number in range(1000)]
    assert False not in found
    assert found.count(True) >= 500


#: Compressions that OpenCV does not read, and gives zeros for.
PLAIN = {"WhiteIsZero", "BlackIsZero", "RGB", "palette"}
OTHERS = set(tiff_files.IMAGES) | {"lzma", "zstd"}


@pytest.mark.campaign
@pytest.mark.slow
def test_opencv_reads_generated_files_alike():
    """OpenCV reads 8 and 16 bits by libtiff.

    At 16 bits it does not invert WhiteIsZero, and takes planes of colours for pixels: left out.
    """
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    compared = 0
    for number in range(1000):
        one = tiff_files.made(number)
        what, data, settings, right, depth = one.what, one.data, one.settings, one.pixels, one.depth
        if one.colours not in PLAIN or one.compression in OTHERS:
            continue
        odd = one.colours == "WhiteIsZero" or ("'planar': 2" in what and right.ndim == 3)
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if found is None or settings.range or depth not in {8, 16} or (odd and depth == 16):
            continue
        found = found[..., ::-1] if found.ndim == 3 else found
        if found.dtype.itemsize * 8 == depth and found.shape == right.shape:
            compared += 1
            assert np.array_equal(found, decode(data).pixels), what
    assert compared >= 120


def test_pillow_reads_plain_files_alike():
    """What a plain file gives today is what it gave when Pillow read it."""
    for options in ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}):
        for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK"):
            image = Image.fromarray(pictures.texture(3, 40, colour=True)).convert(mode)
            data = pictures.encoded(image, "TIFF", **options)
            with Image.open(io.BytesIO(data)) as opened:
                grey = mode in {"1", "L", "LA"}
                expected = np.asarray(opened.convert("L" if grey else "RGB"))
            assert np.array_equal(decode(data).pixels, expected), (mode, options)
