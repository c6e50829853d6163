"""One grid of patch scores of a picture, blended from those of its tiles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ops.images.tiles import Tiling
from ops.results.anomaly_map import Map, extended

#: The weight of a tile at its border, as a share of its side; it counts where no other tile does.
_LEAST = 1e-6


class _Span(NamedTuple):
    """What one column or row of tiles adds to the cells of the grid, along one axis."""

    cells: slice
    matrix: npt.NDArray[np.float32]
    """Cells of the slice from patches of the tile: interpolation times the tile's weight."""
    share: npt.NDArray[np.float64]
    """The tile's weight at each cell of the slice; those of all tiles add up to 1."""


class Mosaic:
    """The grid of a picture, to which the maps of its tiles are added in any order.

    Cells are as large as a tile's patches, or as the pixels of the picture's map if these are
    larger. Where tiles overlap, their values are averaged with weights that fall linearly to zero
    at the borders of each tile. So values change continuously from one tile to the next, and where
    all tiles agree, the grid has the value that they agree on. Padding is left out.

    With `partial`, tiles may be missing, as those of which nothing is inspected are: call `fill`
    after the last.
    """

    def __init__(
        self,
        tiles: Tiling,
        patches: tuple[int, int],
        map_size: tuple[int, int],
        partial: bool = False,
    ) -> None:
        """`patches`: rows and columns of a tile's map; `map_size`: width and height of the map."""
        self._columns_of_tiles = len(tiles.lefts)
        columns = _cells(tiles.width, tiles.size, patches[1], map_size[0])
        rows = _cells(tiles.height, tiles.size, patches[0], map_size[1])
        self._across = _spans(tiles.lefts, tiles.width, tiles.size, patches[1], columns)
        self._down = _spans(tiles.tops, tiles.height, tiles.size, patches[0], rows)
        self.values: Map = np.zeros((rows, columns), np.float32)
        """The grid (rows, columns); complete once every tile was added."""
        self._shares: Map | None = np.zeros((rows, columns), np.float32) if partial else None

    def add(self, number: int, scores: Map) -> None:
        """Add the map (rows, columns) of a tile."""
        row, column = divmod(number, self._columns_of_tiles)
        down, across = self._down[row], self._across[column]
        with np.errstate(invalid="ignore"):  # of scores that are not finite
            self.values[down.cells, across.cells] += down.matrix @ scores @ across.matrix.T
        if self._shares is not None:
            shares = down.share[:, None] * across.share
            self._shares[down.cells, across.cells] += shares.astype(np.float32)

    def fill(self) -> None:
        """Average over the tiles that were added; cells of none take the value of the nearest."""
        if self._shares is None:
            return
        known = self._shares > 0
        self.values /= self._shares.clip(np.finfo(np.float32).tiny)
        self.values = extended(self.values, known)


def _cells(length: int, size: int, patches: int, most: int) -> int:
    """Cells along an axis of `length` pixels, whose tiles of `size` pixels have some patches."""
    return min(most, max(1, round(length * patches / size)))


def _spans(
    firsts: tuple[int, ...], length: int, size: int, patches: int, cells: int
) -> list[_Span]:
    """The span of each tile along one axis; the weights of all tiles add up to 1 at each cell."""
    centres = (np.arange(cells) + 0.5) * length / cells
    covered, total = min(length, size), np.zeros(cells)
    slices, weights = [], []
    for first in firsts:
        inside = slice(*np.searchsorted(centres, (first, first + covered)).tolist())
        at = centres[inside] - first
        weights.append(np.minimum(at, covered - at) + _LEAST * size)
        slices.append(inside)
        total[inside] += weights[-1]
    spans = []
    for first, inside, weight in zip(firsts, slices, weights, strict=True):
        # In units of patches, counted from the centre of the first.
        at = (centres[inside] - first) * patches / size - 0.5
        matrix = _interpolation(at, _shown(covered, size, patches), length / cells * patches / size)
        matrix *= (weight / total[inside])[:, None]
        padded = np.zeros((len(at), patches), np.float32)
        padded[:, : matrix.shape[1]] = matrix
        spans.append(_Span(inside, padded, weight / total[inside]))
    return spans


def _shown(covered: int, size: int, patches: int) -> int:
    """Patches along an axis that show at least a pixel of the picture."""
    return min(patches, -(-covered * patches // size))


def _interpolation(
    at: npt.NDArray[np.float64], patches: int, width: float
) -> npt.NDArray[np.float64]:
    """Values at places from values of patches: linear, or averaged if places are further apart."""
    inside = np.clip(at, 0, patches - 1)[:, None]
    triangle = np.clip(1 - np.abs(inside - np.arange(patches)) / max(1.0, width), 0, None)
    return np.asarray(triangle / triangle.sum(axis=1, keepdims=True))
