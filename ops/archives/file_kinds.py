"""What a file is by its first bytes: which reader reads it, or its name if none does."""

from __future__ import annotations

import re

#: Kinds that have a reader, by how their files begin.
_READ = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("TIFF", re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]")),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51")),
    ("JPEG XL", re.compile(rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a")),
    ("PNM", re.compile(rb"P[1-7FfyY0][\s#]|P[Ff]4?\s")),
    ("BMP", re.compile(rb"BM")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("WebP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
)
#: Brands of the ISO base media file format (ISO/IEC 14496-12, section 4.3).
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1"), "HEIC"),
    b"crx ": "a camera RAW (CR3)",
    b"jp2 ": "JPEG 2000",
}
#: Kinds without a reader.
_NAMED = (
    ("a camera RAW (CR2)", re.compile(rb"II\x2a\0....CR", re.DOTALL)),
    ("a camera RAW (ORF)", re.compile(rb"IIR[OS]\x08\0|MMOR")),
    ("a camera RAW (RW2)", re.compile(rb"IIU\0")),
    ("a camera RAW (RAF)", re.compile(rb"FUJIFILMCCD-RAW")),
    ("a camera RAW (X3F)", re.compile(rb"FOVb")),
    ("a camera RAW (MRW)", re.compile(rb"\0MRM")),
    ("a Photoshop document (PSD)", re.compile(rb"8BPS\0[\1\2]")),
    ("a PDF document", re.compile(rb"%PDF-")),
    ("a PostScript document", re.compile(rb"%!PS|\xc5\xd0\xd3\xc6")),
    ("an SVG drawing", re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE[^>]*>\s*)*<svg[\s>]", re.DOTALL)),  # noqa: E501
    ("an OpenEXR image", re.compile(rb"\x76\x2f\x31\x01")),
    ("a Radiance HDR image", re.compile(rb"#\?(RADIANCE|RGBE)")),
    ("a DICOM file", re.compile(rb".{128}DICM", re.DOTALL)),
    ("a FITS file", re.compile(rb"SIMPLE  =")),
    ("an HDF5 file", re.compile(rb"\x89HDF\r\n\x1a\n")),
    ("a NumPy array", re.compile(rb"\x93NUMPY")),
    ("a JPEG XR image", re.compile(rb"II\xbc")),
    ("a DDS texture", re.compile(rb"DDS ")),
    ("a KTX texture", re.compile(rb"\xabKTX [12][10]\xbb")),
    ("an icon", re.compile(rb"\0\0[\1\2]\0[\x01-\xff]\0", re.DOTALL)),
    ("a macOS icon", re.compile(rb"icns")),
    ("a QOI image", re.compile(rb"qoif")),
    ("a FLIF image", re.compile(rb"FLIF")),
    ("a BPG image", re.compile(rb"BPG\xfb")),
    ("an SGI image", re.compile(rb"\x01\xda[\0\1][\1\2]")),
    ("a PCX image", re.compile(rb"\x0a[\x00-\x05][\0\1][\1\2\4\x08]")),
    ("a Sun raster image", re.compile(rb"\x59\xa6\x6a\x95")),
    ("a JBIG2 image", re.compile(rb"\x97JB2\r\n\x1a\n")),
    ("a DjVu document", re.compile(rb"AT&TFORM")),
    ("a MNG animation", re.compile(rb"\x8aMNG\r\n\x1a\n")),
    ("a GIMP image (XCF)", re.compile(rb"gimp xcf")),
    ("a Windows metafile", re.compile(rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", re.DOTALL)),
    ("an XPM image", re.compile(rb"/\* XPM \*/")),
    ("an AVI video", re.compile(rb"RIFF....AVI ", re.DOTALL)),
    ("a WAV sound", re.compile(rb"RIFF....WAVE", re.DOTALL)),
    ("a Matroska or WebM video", re.compile(rb"\x1a\x45\xdf\xa3")),
    ("an MPEG video", re.compile(rb"\0\0\x01[\xb3\xba]|\x47.{187}\x47.{187}\x47", re.DOTALL)),
    ("a Flash video", re.compile(rb"FLV\x01")),
    ("a Windows Media video", re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11")),
    ("an Ogg file", re.compile(rb"OggS")),
    ("a QuickTime video", re.compile(rb"....(moov|mdat|wide)", re.DOTALL)),
    ("a zip archive", re.compile(rb"PK\x03\x04")),
    ("a gzip file", re.compile(rb"\x1f\x8b\x08")),
)  # fmt: skip


def kind_of(data: bytes) -> str | None:
    """The kind of a file that has a reader of its own; None of others."""
    if (brand := _brand(data)) is not None and not brand.startswith("a "):
        return brand
    if data[8:10] == b"CR" and data[:4] == b"II\x2a\0":
        return None
    return next((kind for kind, begins in _READ if begins.match(data)), None)


def unread_kind_of(data: bytes) -> str | None:
    """The name of a kind of file that nothing here reads; None if the bytes are of no known one."""
    if brand := _brand(data):
        return brand
    head = data[:4096]
    return next((name for name, begins in _NAMED if begins.match(head)), None)


def _brand(data: bytes) -> str | None:
    """By the box `ftyp`: major brand, then the compatible ones; any other brand is of a video."""
    if data[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, length - 3, 4))]
    if b"avif" in brands:  # also of files whose major brand is `mif1`
        return "AVIF"
    return next((_BRANDS[b] for b in brands if b in _BRANDS), "a video (MP4 or QuickTime)")
