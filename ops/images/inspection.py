"""Inspection masks: which pixels of a product's pictures are inspected.

What lies outside is neither fitted nor scored. It is replaced by a constant before a picture is
resized, so nothing that is computed later can depend on it.
"""

from __future__ import annotations

import functools
import hashlib
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ops.archives import file_kinds
from ops.errors import UserError
from ops.failure import Failure
from ops.images.decode import DecodeSettings, Picture, decode
from ops.images.resize import InputSettings, binarise, nearest, on_map
from ops.images.tiles import Tiling, reflected, scaled_size

Bools = npt.NDArray[np.bool_]
#: A mask has at most so many pixels, which workers hold with a byte each. It is scaled with the
#: picture, which may have more.
MOST_PIXELS = 2**24
#: Largest relative difference of the aspect ratios of a mask and a picture.
TOLERANCE = 0.01
#: What pixels outside are replaced by before a picture is resized, as a share of white: about the
#: mean of ImageNet.
_GREY = 0.45
#: Pixels that are replaced at a time.
_AT_ONCE = 2**22


@dataclass(frozen=True)
class InspectionMask:
    """The pixels that are inspected, as a PNG of one bit for each; white is inspected.

    A mask has the proportions of the pictures, and is scaled to the size of each by nearest pixel.
    """

    png: bytes

    @classmethod
    def of(cls, inspected: Bools) -> InspectionMask:
        """A mask from booleans (H, W), True where pixels are inspected."""
        out = io.BytesIO()
        grey = Image.fromarray(inspected.astype(np.uint8) * 255)
        grey.convert("1", dither=Image.Dither.NONE).save(out, "PNG")
        return cls(out.getvalue())

    @property
    def inspected(self) -> Bools:
        """Booleans (H, W), read-only. Raises UserError if the PNG cannot be read."""
        return _decoded(self.png)

    @property
    def sha256(self) -> str:
        """The hash of size and pixels, which does not depend on how the PNG is compressed."""
        height, width = self.inspected.shape
        content = f"{width} x {height}\n".encode() + np.packbits(self.inspected).tobytes()
        return hashlib.sha256(content).hexdigest()

    @property
    def share(self) -> float:
        """Share of the picture that is inspected."""
        return float(self.inspected.mean())

    def fits(self, width: int, height: int) -> bool:
        """Whether a picture of this size has the aspect ratio of the mask, within `TOLERANCE`."""
        rows, columns = self.inspected.shape
        return bool(abs(columns * height - rows * width) <= TOLERANCE * rows * width)

    def check(self, width: int, height: int, settings: InputSettings) -> None:
        """Check that the mask fits a picture of this size. Raises Failure (unsupported)."""
        if not self.fits(width, height):
            rows, columns = self.inspected.shape
            raise Failure(
                "unsupported",
                f"its {width} x {height} px have another aspect ratio than the {columns} x {rows} "
                "of the mask of its product, which may differ by 1 %; fit pictures of another "
                "shape as a product of their own",
            )
        if not self._is_seen(width, height, settings):
            raise Failure(
                "unsupported",
                f"no pixel is left of the mask of its product where {width} x {height} px are "
                "resized to the input; fit with a larger mask, or a larger input.size",
            )

    def _is_seen(self, width: int, height: int, settings: InputSettings) -> bool:
        """Whether a pixel of the input, and one of the map, is inspected."""
        if not self.on_map(width, height, settings).any():
            return False
        if not settings.tiled:
            return True  # the map has the pixels of the input
        whole = scaled_size(width, height, settings.scale)
        values = self.inspected
        # A scaled picture that is larger than the mask shows all pixels of the mask.
        size = min(whole[0], values.shape[1]), min(whole[1], values.shape[0])
        return bool(nearest(values, size, (0, 0), size).any())

    def on_map(self, width: int, height: int, settings: InputSettings) -> Bools:
        """Which pixels of the map of a picture of this size are inspected.

        Without tiles they are also the pixels of the input.
        """
        return on_map(self.inspected, width, height, settings)

    def on_tile(self, tiles: Tiling, number: int) -> Bools:
        """Which pixels (size, size) of a tile are inspected; padding mirrors them."""
        covered = tiles.covered
        whole = tiles.width, tiles.height
        shown = nearest(self.inspected, whole, tiles.corner(number), covered)
        columns, rows = (reflected(length, tiles.size) for length in covered)
        return shown[np.ix_(rows, columns)] if tiles.is_padded else shown

    def rows(self, size: tuple[int, int], start: int, stop: int) -> Bools:
        """Which pixels of some rows of a picture of this width and height are inspected."""
        return nearest(self.inspected, size, (0, start), (size[0], stop - start))

    def covered(self, picture: Picture) -> Picture:
        """A picture whose pixels outside are grey, of the same level in all channels."""
        pixels, level = picture.pixels.copy(), round(_GREY * (2**picture.bit_depth - 1))
        size = picture.width, picture.height
        step = max(1, _AT_ONCE // picture.width)
        for start in range(0, picture.height, step):
            stop = min(start + step, picture.height)
            pixels[start:stop][~self.rows(size, start, stop)] = level
        return picture._replace(pixels=pixels)


def read_mask(data: bytes) -> Bools:
    """The white pixels (H, W) of a PNG of grey levels. Raises UserError.

    White is half of the full scale and more; in a mask without such pixels, all but 0 are white.
    """
    if (kind := file_kinds.kind_of(data)) != "PNG":
        raise UserError(f"it is {kind or 'no image'}, and a mask is a PNG; save it as one")
    try:
        pixels = decode(data, DecodeSettings(max_pixels=MOST_PIXELS)).pixels
    except Failure as failure:
        if failure.status == "too_large":
            raise UserError(
                f"it has more than {MOST_PIXELS:,} pixels; shrink it, for masks are scaled with "
                "the pictures"
            ) from None
        raise UserError(
            f"it cannot be read ({failure.reason}); save it again as a PNG of grey levels"
        ) from None
    if pixels.ndim == 3 and (pixels != pixels[..., :1]).any():
        raise UserError("it has colours, and a mask is black and white; save it in grey levels")
    return binarise(pixels)


@functools.lru_cache(maxsize=8)
def _decoded(png: bytes) -> Bools:
    inspected = read_mask(png)
    inspected.flags.writeable = False
    return inspected
