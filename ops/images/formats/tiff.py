"""TIFF: chooses the page of a file and decodes it, in this thread and from its bytes alone.

Sections are those of TIFF 6.0 (Adobe, 1992).
"""

from __future__ import annotations

import io
import logging
import re
import struct

import tifffile
from PIL import Image

from ops.failure import Failure
from ops.images.formats import pillow_files, tiff_colours, tiff_samples, tiff_ycbcr
from ops.images.formats.depth import Raster
from ops.images.formats.pixel_limit import PixelLimit

_LOGGER = logging.getLogger("tifffile")  # reports what becomes a reason here
_LOGGER.addHandler(logging.NullHandler())
_LOGGER.propagate = False

#: Tags that files have beyond those of the baseline.
_DNG_VERSION, _STK_PLANES, _IMAGE_DEPTH, _MAX_SAMPLE_VALUE = 50706, 33629, 32997, 281
_ORIENTATION = 274
#: NewSubfileType (section 8): a smaller version of another page, or a mask for one.
_REDUCED, _MASK = 1, 4
_MOST_PAGES = 1000
#: Tags that the pixels depend on: sizes, layout, compression, colours.
_OF_PIXELS = {254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 281, 284, 317, 320}
_OF_PIXELS |= {322, 323, 324, 325, 332, 338, 339, 347, 529, 530, 532}
#: JPEG, the former and the present way.
_JPEG = {6, 7}
_YCBCR = 6


def read(data: bytes, number: int | None, limit: PixelLimit) -> Raster:
    """Decode one page of a TIFF or BigTIFF; `number` counts from 1.

    Previews, levels of a pyramid and masks are no pages. Without a number, a file of several pages
    is refused.
    """
    with tifffile.TiffFile(
        io.BytesIO(data), _multifile=False, is_scanimage=False, is_ndpi=False
    ) as file:
        place, page = _chosen(file, number)
        _check_tags(page, data)
        tiff_samples.check_layout(page, len(data), limit)
        if page.bitspersample == 8 and page.compression in _JPEG:
            return _by_pillow(data, place)
        if page.bitspersample == 8 and page.photometric == _YCBCR:
            raster = tiff_ycbcr.read(page)
        else:
            raster = tiff_colours.to_raster(page, tiff_samples.decode(page))
    orientation = page.tags.valueof(_ORIENTATION, 1)
    return raster._replace(
        orientation=orientation if orientation in range(1, 9) else 1, largest=_largest(page)
    )


def orientation(data: bytes) -> int:
    """How the first page lies, as the tag of the file says; 1 without it."""
    with tifffile.TiffFile(io.BytesIO(data), _multifile=False) as file:
        return int(file.pages.first.tags.valueof(_ORIENTATION, 1))


def _chosen(file: tifffile.TiffFile, number: int | None) -> tuple[int, tifffile.TiffPage]:
    """A page and its place among all directories."""
    pages = []
    for place, page in enumerate(file.pages):
        if place >= _MOST_PAGES:
            message = f"it has over {_MOST_PAGES} directories"
            raise Failure("unsupported", f"{message}; a file must hold one image, or a few pages")
        assert isinstance(page, tifffile.TiffPage)
        _check_kind(page)
        if not page.subfiletype & (_REDUCED | _MASK):
            pages.append((place, page))
    if not len(file.pages) or not file.pages.first.imagewidth:
        raise Failure("unreadable", "damaged (it holds no directory of a picture)")
    if not pages:
        message = "it holds previews only, as a camera RAW does whose picture lies elsewhere"
        raise Failure("unsupported", f"{message}; a TIFF must have a page of full resolution")
    count = len(pages)
    if number is None and count > 1:
        message = f"it has {count} frames or pages; --decode.page 1 reads the first of each file"
        raise Failure("unsupported", message)
    if number is not None and number > count:
        raise Failure("unsupported", f"it has {count} pages, so there is no --decode.page {number}")
    return pages[(number or 1) - 1]


def _check_kind(page: tifffile.TiffPage) -> None:
    """Refuse files whose directories do not say all about their pictures."""
    if _DNG_VERSION in page.tags:
        raise Failure("unsupported", "it is a camera RAW (DNG); develop it to a TIFF")
    planes = int(page.imagedepth)
    if _STK_PLANES in page.tags:
        planes = page.tags[_STK_PLANES].count
    elif found := re.match(r"ImageJ=[^\n]*\nimages=(\d+)", page.description):
        planes = int(found[1]) if len(page.parent.pages) == 1 else 1
    if planes > 1:
        raise Failure("unsupported", f"it has {planes} planes; a file must hold one image")


def _check_tags(page: tifffile.TiffPage, data: bytes) -> None:
    """Refuse a page with a tag that could not be read: its default would be taken instead."""
    order = page.parent.byteorder
    head, size = ("Q", 20) if page.parent.is_bigtiff else ("H", 12)
    (count,) = struct.unpack_from(order + head, data, page.offset)
    start = page.offset + struct.calcsize(order + head)
    codes = {
        struct.unpack_from(order + "H", data, at)[0]
        for at in range(start, start + size * count, size)
    }
    if lost := sorted(code for code in codes & _OF_PIXELS if page.tags.valueof(code) is None):
        raise Failure("unreadable", f"damaged (its tags {lost} cannot be read)")


def _by_pillow(data: bytes, place: int) -> Raster:
    """JPEG of 8 bits."""
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        image.seek(place)
        _check_strips(image)
        return pillow_files.raster_of(image)


def _check_strips(image: Image.Image) -> None:
    """Refuse a TIFF whose strips or tiles do not cover all rows: these would be black."""
    tiles = image.tile  # type: ignore[attr-defined]  # set for every image from a file
    extents = [tile.extents or (0, 0, 0, 0) for tile in tiles]
    covered = sum((right - left) * (low - top) for left, top, right, low in extents)
    if covered < image.width * image.height:
        message = f"damaged (it holds {covered} of {image.width} x {image.height} pixels)"
        raise Failure("unreadable", message)


def _largest(page: tifffile.TiffPage) -> int | None:
    value = page.tags.valueof(_MAX_SAMPLE_VALUE)
    value = max(value) if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) and value > 0 else None
