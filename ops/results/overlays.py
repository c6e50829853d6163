"""Pictures for people: thumbnails, anomaly maps laid over pictures, and contact sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from ops.augment import synthetic_defects
from ops.augment.synthetic_defects import Defective
from ops.images.decode import Picture
from ops.results.anomaly_map import Map, Scale
from ops.results.map_png import Decoded

#: A picture (h, w) or (h, w, 3) in 8 bits per channel.
Pixels8 = npt.NDArray[np.uint8]
#: Side of the pictures in contact sheets, in pixels.
SHEET_SIDE = 128
#: JPEG qualities to try, from good to barely recognisable; only noise needs the last.
_QUALITIES = (85, 70, 50, 30, 10)


def thumbnail(picture: Picture, side: int) -> Pixels8:
    """The picture (h, w[, 3]), at most `side` pixels wide and high; never enlarged."""
    small = Image.fromarray(_in_8_bits(picture))
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    return np.asarray(small)


def crop(picture: Picture, box: tuple[int, int, int, int], side: int) -> Pixels8:
    """A rectangle of the picture, at most `side` pixels wide and high; never enlarged.

    `box` is left, top, right and bottom in pixels of the picture, within it.
    """
    left, top, right, bottom = box
    return thumbnail(picture._replace(pixels=picture.pixels[top:bottom, left:right]), side)


def close_up(picture: Picture, x: int, y: int, side: int) -> Pixels8:
    """The square of `side` pixels around a pixel, moved to lie within the picture."""
    left = max(0, min(x - side // 2, picture.width - side))
    top = max(0, min(y - side // 2, picture.height - side))
    square = picture.pixels[top : top + side, left : left + side]
    return _in_8_bits(picture._replace(pixels=square))


def _in_8_bits(picture: Picture) -> Pixels8:
    if picture.bit_depth == 8 and picture.pixels.dtype == np.uint8:
        return np.asarray(picture.pixels, np.uint8)
    full = 2**picture.bit_depth
    grey_levels = np.rint(np.arange(full) * (255 / (full - 1))).astype(np.uint8)
    return np.asarray(grey_levels[picture.pixels])


def overlay(picture: Pixels8, values: Map, scale: Scale, threshold: float | None) -> Pixels8:
    """The picture (h, w[, 3]) in grey, coloured where the map (h, w) is above the threshold.

    Returns (h, w, 3). Without a threshold, the middle between the scale's offset and the map's peak
    takes its place, so that colours show where this picture scores highest, however low that is.
    """
    return blend(picture, values, scale, _colour_from(values, threshold, scale))


def thumbnail_overlay(
    small: Pixels8, picture: Picture, decoded: Decoded, threshold: float | None
) -> Pixels8:
    """`overlay` of a stored map on the thumbnail of its picture."""
    low = _colour_from(decoded.values(), threshold, decoded.scale)
    shape = small.shape[1], small.shape[0]
    values = map_resized(decoded, (picture.width, picture.height), shape, outside=low)
    return blend(small, values, decoded.scale, low)


def _colour_from(values: Map, threshold: float | None, scale: Scale) -> float:
    return (scale.offset + float(values.max())) / 2 if threshold is None else threshold


def blend(picture: Pixels8, values: Map, scale: Scale, low: float) -> Pixels8:
    """The picture (h, w[, 3]) in grey, coloured where the map (h, w) is above `low`: (h, w, 3).

    Colours depend on (value - low) / (low - scale.offset), clipped to [0, 1], for every picture.
    """
    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    colour, alpha = _colours(values, scale, low)
    mixed = (1 - alpha) * (grey[..., None] / 255) + alpha * colour
    return np.asarray(np.rint(mixed * 255), dtype=np.uint8)


def heat(decoded: Decoded, size: tuple[int, int], side: int, threshold: float | None) -> Pixels8:
    """The colours of `overlay` alone, (h, w, 4) with their opacity, at most `side` wide and high.

    `size` is width and height of the map's picture, whose proportions the result has.
    """
    factor = min(1.0, side / max(size))
    small = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
    low = _colour_from(decoded.values(), threshold, decoded.scale)
    values = map_resized(decoded, size, small, outside=low)
    layers = np.concatenate(_colours(values, decoded.scale, low), axis=2)
    return np.asarray(np.rint(layers * 255), dtype=np.uint8)


def _colours(
    values: Map, scale: Scale, low: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Colour (h, w, 3) and opacity (h, w, 1) of a map (h, w), in [0, 1]."""
    from matplotlib import colormaps  # noqa: PLC0415 - takes a second, and few workers need it

    strength = ((values - low) / max(low - scale.offset, 1e-12)).clip(0, 1)
    colour = colormaps["inferno"](0.35 + 0.65 * strength)[..., :3]
    return colour, 0.75 * np.sqrt(strength)[..., None]


def map_resized(
    decoded: Decoded, size: tuple[int, int], small: tuple[int, int], outside: float
) -> Map:
    """The map's values (h, w) at the pixels of a resized picture; `outside` where it has none.

    `size` is width and height of the picture, `small` after it was resized.
    """
    width, height = small
    where = decoded.geometry
    # Counted from the edges of pixels, input = picture / step - offset.
    across = (size[0] / width / where.step_x, 0, -where.left)
    down = (0, size[1] / height / where.step_y, -where.top)
    image = Image.fromarray(decoded.values()).transform(
        (width, height),
        Image.Transform.AFFINE,
        (*across, *down),
        Image.Resampling.BILINEAR,
        fillcolor=outside,
    )
    return np.asarray(image, dtype=np.float32)


def sheet_column(pictures: Iterable[Image.Image | Pixels8], side: int = SHEET_SIDE) -> Image.Image:
    """Pictures from top to bottom, each resized to a square of `side` pixels."""
    squares = [_square(picture, side) for picture in pictures]
    column = Image.new("RGB", (side, side * len(squares)))
    for row, square in enumerate(squares):
        column.paste(square, (0, side * row))
    return column


def _square(picture: Image.Image | Pixels8, side: int) -> Image.Image:
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def contact_sheet(columns: Sequence[Image.Image]) -> Image.Image:
    """Columns of equal size side by side; `sheet_column` makes them."""
    width, height = columns[0].size
    sheet = Image.new("RGB", (width * len(columns), height))
    for number, column in enumerate(columns):
        sheet.paste(column, (width * number, 0))
    return sheet


def join_columns(columns: Sequence[bytes]) -> bytes:
    """The contact sheet of columns that are PNG files, as a PNG file."""
    images = [Image.open(io.BytesIO(column), formats=["PNG"]) for column in columns]
    return to_png(contact_sheet(images))


def outlined(picture: Pixels8, inside: npt.NDArray[np.bool_], size: tuple[int, int]) -> bytes:
    """A PNG of a picture (h, w, 1 or 3) that is dark outside of an area, outlined in red.

    `inside` is (h, w); the PNG has the proportions of `size`, a width and a height, and the longer
    side of the picture.
    """
    colours = np.broadcast_to(picture, (*picture.shape[:2], 3))
    shown = np.where(inside[..., None], colours, colours // 3)
    # Two pixels wide, so that it remains visible if the picture shrinks.
    edge = binary_dilation(inside, iterations=1) & ~binary_erosion(inside, border_value=1)
    shown = np.where(edge[..., None], np.array([255, 0, 0], np.uint8), shown)
    factor = max(picture.shape[:2]) / max(size)
    small = tuple(max(1, round(length * factor)) for length in size)
    return to_png(Image.fromarray(shown.astype(np.uint8)).resize(small, Image.Resampling.LANCZOS))


def defects_sheet(
    pairs: Sequence[tuple[synthetic_defects.Picture, Defective]], side: int = SHEET_SIDE
) -> bytes:
    """A PNG: good pictures above, the same with synthetic defects below, outlined in red."""
    columns = []
    for good, defective in pairs:
        edge = binary_dilation(defective.mask) & ~defective.mask
        red = np.array([1.0, 0.0, 0.0])[:, None, None]
        outlined = np.where(edge, red, defective.picture)  # (3, h, w)
        columns.append(sheet_column([_from_unit(good), _from_unit(outlined)], side))
    return to_png(contact_sheet(columns))


def _from_unit(picture: synthetic_defects.Picture) -> Pixels8:
    """A picture (C, h, w) in [0, 1] as (h, w, 3) in 8 bits."""
    colours = np.broadcast_to(picture, (3, *picture.shape[1:])).transpose(1, 2, 0)
    return np.rint(colours * 255).astype(np.uint8)


def to_png(picture: Image.Image | Pixels8) -> bytes:
    """A picture as a PNG file."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def to_jpeg(pixels: Pixels8, quality: int = _QUALITIES[0]) -> bytes:
    """A picture (h, w[, 3]) as a JPEG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def data_uri(pixels: Pixels8, max_bytes: int) -> str:
    """A picture (h, w[, 3]) as the data URI of a JPEG, of at most `max_bytes` bytes if possible."""
    for quality in _QUALITIES:
        file = to_jpeg(pixels, quality)
        if len(file) <= max_bytes:
            break
    return "data:image/jpeg;base64," + base64.b64encode(file).decode()
