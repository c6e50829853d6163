"""A file that nothing reads is unsupported by its name; only what is no image is called so."""

import pytest

from ops.archives import file_kinds
from ops.failure import Failure
from ops.images.decode import decode

BOX = b"\0\0\0\x18ftyp"
#: What a file begins with -> a word of its name.
UNREAD = {
    b"%PDF-1.7\n": "PDF",
    b"8BPS\0\1" + bytes(30): "PSD",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>": "SVG",
    b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg width='3'>": "SVG",
    b"II*\0\x10\0\0\0CR\2\0" + bytes(40): "CR2",
    BOX + b"crx \0\0\0\1crx isom": "CR3",
    b"IIRO\x08\0\0\0" + bytes(40): "ORF",
    b"IIU\0\x18\0\0\0" + bytes(40): "RW2",
    b"FUJIFILMCCD-RAW 0201": "RAF",
    BOX + b"isom\0\0\2\0isommp42": "video",
    BOX + b"qt  \0\0\2\0qt  qt  ": "video",
    b"RIFF\x10\0\0\0AVI LIST": "AVI",
    b"\x1a\x45\xdf\xa3\1\0\0\0": "Matroska",
    b"\x76\x2f\x31\x01\2\0\0\0": "OpenEXR",
    b"#?RADIANCE\n": "Radiance",
    bytes(128) + b"DICM\2\0": "DICOM",
    b"SIMPLE  =                    T": "FITS",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x93NUMPY\1\0": "NumPy",
    b"DDS |\0\0\0": "DDS",
    b"\0\0\1\0\1\0\x10\x10": "icon",
    b"qoif\0\0\0\1": "QOI",
    b"II\xbc\1\x20\0\0\0": "JPEG XR",
    b"\x01\xda\1\1\0\3": "SGI",
    b"AT&TFORM\0\0\0\0DJVU": "DjVu",
    b"gimp xcf v011\0": "XCF",
    b"\xc5\xd0\xd3\xc6" + bytes(20): "PostScript",
    b"%!PS-Adobe-3.0 EPSF-3.0\n": "PostScript",
    b"PK\3\4\x14\0": "zip",
    b"\x1f\x8b\x08\0": "gzip",
}


@pytest.mark.parametrize(
    ("data", "word"), UNREAD.items(), ids=lambda x: x if x in UNREAD.values() else ""
)
def test_a_kind_that_is_not_read_is_unsupported_by_name(data, word):
    with pytest.raises(Failure) as failure:
        decode(data + bytes(300))
    assert failure.value.status == "unsupported"
    assert word in failure.value.reason


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0+\0\x08\0\0", "TIFF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (BOX + b"heic\0\0\0\0mif1heic", "HEIC"),
        (BOX + b"mif1\0\0\0\0mif1avif", "AVIF"),
        (b"P5 3 4 255\n", "PNM"),
        (b"GIF89a", "GIF"),
        (b"RIFF\0\0\0\0WEBP", "WebP"),
    ],
)
def test_a_kind_with_a_reader_that_is_cut_off_is_damaged(data, kind):
    assert file_kinds.kind_of(data) == kind
    with pytest.raises(Failure, match="unreadable: damaged"):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [b"name,score\na,1\n", b"<?xml version='1.0'?><Error/>", b"<html></html>", b"\0" * 99, b"{}"],
)
def test_what_is_no_image_is_called_so(data):
    with pytest.raises(Failure, match="unreadable: not an image"):
        decode(data)
