"""What the samples of a TIFF mean: photometric interpretation, palette, alpha.

Sections are those of TIFF 6.0 (Adobe, 1992).
"""

from __future__ import annotations

import numpy as np
import tifffile
from PIL import Image

from ops.failure import Failure
from ops.images.formats import pillow_files
from ops.images.formats.depth import Raster, Values, bands, over_black

_WHITE_IS_ZERO, _RGB, _PALETTE, _CMYK = 0, 2, 3, 5
#: BlackIsZero, a mask, and a colour-filter array (TIFF/EP) or linear data (DNG) as brightness.
_GREY = {_WHITE_IS_ZERO, 1, 4, 32803, 34892}
_CHANNELS = {_RGB: 3, _PALETTE: 1, _CMYK: 4}
_COLOR_MAP, _PHOTOMETRIC, _INK_SET = 320, 262, 332
#: ExtraSamples (section 18). A missing tag means a fourth sample is alpha, as Pillow has it.
_PREMULTIPLIED, _STRAIGHT = 1, 2
#: Depths whose levels are levels of 8 bits, times a whole number.
_SMALL = {1: 255, 2: 85, 4: 17}


def to_raster(page: tifffile.TiffPage, samples: Values) -> Raster:
    """Grey or RGB of samples (H, W, channels). Raises Failure for other colours."""
    meaning, note = _meaning(page)
    needed = 3 if meaning == 34892 and samples.shape[2] >= 3 else _CHANNELS.get(meaning, 1)
    if samples.shape[2] < needed:
        message = f"{samples.shape[2]} samples a pixel, and its colours need {needed}"
        raise Failure("unreadable", f"damaged (it has {message})")
    colours, alpha = samples[..., :needed], _alpha(page, samples, needed)
    depth = page.bitspersample if samples.dtype.kind == "u" else 64
    if depth in _SMALL and meaning != _PALETTE:
        samples *= np.uint8(_SMALL[depth])  # colours and alpha are views of them
        depth = 8
    declared = depth if depth < 16 else None
    if meaning == _PALETTE:
        return _palette(page, colours[..., 0], alpha)._replace(note=note)
    if meaning == _CMYK:
        raster = _cmyk(page, colours)
        full = _over_black(raster.values, alpha, page.bitspersample)
        return raster._replace(values=full, note=note)
    if depth == 8 and alpha is not None:
        return Raster(_blended(page, colours, alpha), 8, note=note)
    values = colours[..., 0] if needed == 1 else colours
    return Raster(values, declared, alpha, meaning == _WHITE_IS_ZERO, note=note)


def _meaning(page: tifffile.TiffPage) -> tuple[int, str]:
    """The photometric interpretation, and a note if the tag is missing."""
    if _PHOTOMETRIC not in page.tags:
        meaning = _RGB if page.samplesperpixel >= 3 else 1  # as libtiff has it
        name = "RGB" if meaning == _RGB else "grey whose 0 is black"
        return meaning, f"it lacks tag PhotometricInterpretation, and was read as {name}"
    meaning = int(page.photometric)
    if meaning not in _GREY and meaning not in _CHANNELS:
        name = getattr(page.photometric, "name", str(meaning))
        message = f"it is a TIFF of {page.bitspersample} bits with colours {name}"
        raise Failure("unsupported", f"{message}; grey, RGB, palettes and CMYK are read")
    return meaning, ""


def _alpha(page: tifffile.TiffPage, samples: Values, needed: int) -> Values | None:
    """The opacity of each pixel; None if there is none, or if it was multiplied into colours.

    Raises Failure where it is unknown which samples were multiplied.
    """
    kinds = _extra_kinds(page, samples.shape[2] - needed)
    if _PREMULTIPLIED in kinds and page.photometric == _WHITE_IS_ZERO:
        message = "it is a TIFF of WhiteIsZero with premultiplied transparency"
        raise Failure("unsupported", f"{message}, whose transparent black is unknown")
    return samples[..., needed + kinds.index(_STRAIGHT)] if _STRAIGHT in kinds else None


def _extra_kinds(page: tifffile.TiffPage, count: int) -> tuple[int, ...]:
    kinds = tuple(int(kind) for kind in page.extrasamples)[:count]
    return kinds or ((_STRAIGHT,) if count == 1 else ())


def _blended(page: tifffile.TiffPage, colours: Values, alpha: Values) -> Values:
    """8 bits over black, with the rounding of Pillow."""
    grey = colours.shape[2] == 1
    out = np.empty(alpha.shape if grey else colours.shape, np.uint8)
    for rows in bands(*alpha.shape):
        seen = 255 - colours[rows] if page.photometric == _WHITE_IS_ZERO else colours[rows]
        out[rows] = _by_pillow("LA" if grey else "RGBA", np.dstack([seen, alpha[rows]]))
    return out


def _by_pillow(mode: str, samples: Values) -> Values:
    """Pixels of 8 bits that samples (H, W, channels) mean in a mode of Pillow."""
    size = samples.shape[1], samples.shape[0]
    image = Image.frombytes(mode, size, np.ascontiguousarray(samples).tobytes())
    return pillow_files.eight_bits(image)


def _palette(page: tifffile.TiffPage, indices: Values, alpha: Values | None) -> Raster:
    """Colours of a ColorMap (section 5): all reds, all greens, all blues, of 16 bits each."""
    table = np.asarray(page.tags.valueof(_COLOR_MAP, ()), np.uint16)
    if page.bitspersample > 8 or indices.dtype.kind != "u" or table.size % 3:
        message = f"a palette of {table.size} values for indices of {page.bitspersample} bits"
        raise Failure("unsupported", f"it is a TIFF with {message}")
    table = table.reshape(3, -1).T
    if int(indices.max()) >= len(table):
        raise Failure("unreadable", f"damaged (it has {len(table)} colours for {indices.max()})")
    if int(table.max()) >= 256:  # otherwise a wrong scale that libtiff knows, too
        low = table & 255
        if ((low != 0) & (low != table >> 8)).any():
            return Raster(_over_black(table[indices], alpha, page.bitspersample), 16)
        table //= 256
    return Raster(_over_black(table.astype(np.uint8)[indices], alpha, page.bitspersample), 8)


def _over_black(colours: Values, alpha: Values | None, depth: int) -> Values:
    return colours if alpha is None else over_black(colours, alpha, 2**depth - 1)


def _cmyk(page: tifffile.TiffPage, inks: Values) -> Raster:
    """Naive conversion, as Pillow's: each ink and black take away light in proportion."""
    if page.tags.valueof(_INK_SET, 1) != 1 or inks.dtype.kind != "u":
        raise Failure("unsupported", "it is a TIFF of inks other than CMYK")
    if page.bitspersample == 8:
        out = np.empty((*inks.shape[:2], 3), np.uint8)
        for rows in bands(*inks.shape[:2]):
            out[rows] = _by_pillow("CMYK", inks[rows])
        return Raster(out, 8)
    if page.bitspersample != 16:
        message = f"it is a CMYK TIFF of {page.bitspersample} bits; 8 and 16 are read"
        raise Failure("unsupported", message)
    paper = np.subtract(65535, inks, out=inks)
    return Raster(over_black(paper[..., :3], paper[..., 3], 65535), 16)
