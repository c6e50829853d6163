"""Scores of pictures from those of their tiles: the largest score, and one map."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ops.detectors.detector import Detector, extended_maps
from ops.detectors.image_batches import Tiles
from ops.images.packed_pixels import Bytes, column
from ops.images.resize import InputSettings, pack, shrunk
from ops.results.anomaly_map import Map
from ops.results.mosaic import Mosaic


def score_tiles(
    detector: Detector,
    tiles: Tiles,
    batch: int,
    step: Callable[[], AbstractContextManager[None]],
) -> tuple[npt.NDArray[np.float64], list[Map]]:
    """Score (B,) and map (rows, columns) of each picture; a score is that of the worst tile.

    `batch` tiles are scored at a time, each time within the context `step`, so memory does not
    grow with the picture, but for the map. A score is NaN if that of a tile is.
    """
    values = np.full(len(tiles.tilings), -np.inf)
    mosaics: list[Mosaic] = []
    for part in tiles.batches(batch):
        with step():
            if part.inside is None:
                scores = detector.score(part.images)
            else:
                scores = detector.score_inside(part.images, part.inside)
            images = scores.image.double().cpu().numpy()
            maps = list(scores.map.float().cpu().numpy())
        if part.inside is not None:
            masked = [tiles.mask(row) is not None for row in part.rows]
            maps = extended_maps(maps, part.inside, masked)
        for row, number, value, one in zip(part.rows, part.numbers, images, maps, strict=True):
            if row == len(mosaics):
                partial = tiles.mask(row) is not None
                mosaics.append(Mosaic(tiles.tilings[row], one.shape, tiles.map_size(row), partial))
            values[row] = np.maximum(values[row], value)
            mosaics[row].add(number, one)
    for mosaic in mosaics:
        mosaic.fill()
    return values, [mosaic.values for mosaic in mosaics]


def previews(rows: pa.Table, settings: InputSettings) -> pa.ChunkedArray:
    """The column of packed pixels, each picture in the size of its map."""
    chosen = [n for n, status in enumerate(rows["status"].to_pylist()) if status == "ok"]
    tiles = Tiles(rows, settings, "cpu", chosen)
    small: list[Bytes | None] = [None] * len(rows)
    for place, row in enumerate(chosen):
        picture = tiles.picture(place)
        grey = picture[..., 0] if picture.shape[2] == 1 else picture
        small[row] = pack(shrunk(grey, tiles.map_size(place), settings))
    return column(small)
