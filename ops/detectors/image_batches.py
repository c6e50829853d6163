"""Rows with packed pixels as images on the device: whole inputs, or tiles of pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ops.images.exposure import Statistics, normalise_exposure, statistics_of
from ops.images.inspection import Bools, InspectionMask
from ops.images.packed_pixels import Bytes, views
from ops.images.resize import InputSettings, map_size, packed_bytes, tiling, unpack
from ops.images.tiles import Tiling, cut

Integers = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class _Image(NamedTuple):
    """Pixels (H, W, C), their bit depth, and statistics of the whole picture that they are of."""

    pixels: Integers
    bit_depth: int
    whole: Statistics | None = None


def to_images(
    rows: pa.Table,
    settings: InputSettings,
    device: str,
    chosen: Sequence[int] | None = None,
    before: Sequence[InputSettings] = (),
) -> Tensor:
    """Images (B, 3, height, width) in [0, 1] on the device, exposed by the settings.

    They are those of the chosen rows, or of all. Integers are copied to the device, which are
    smaller, and divided by their full scale there. `before`: inputs that the reader lists before
    this one, the first of them that of the column `pixels`.
    """
    chosen = range(len(rows)) if chosen is None else chosen
    return _batch(_inputs(rows, settings, chosen, before), settings, device)


def _inputs(
    rows: pa.Table,
    settings: InputSettings,
    chosen: Sequence[int],
    before: Sequence[InputSettings],
) -> list[_Image]:
    pixels = _packed(rows, settings, before)
    channels, depths = rows["channels"].to_pylist(), rows["bit_depth"].to_pylist()
    size = settings.sides
    return [
        _Image(unpack(pixels[row], channels[row], depths[row], size), depths[row]) for row in chosen
    ]


class Inspection(NamedTuple):
    """Which pixels of some rows are inspected, and what the others are replaced by."""

    masks: Sequence[InspectionMask | None]
    """That of each chosen row's product; None inspects all of the picture."""
    fill: Sequence[float]
    """The mean (3,) of the network's inputs: normalised, it is zero."""

    def applied(self, images: Tensor, shown: Sequence[Bools]) -> Tensor:
        """Images (B, 3, H, W) whose pixels that are not shown (H, W) are the mean."""
        mean = torch.tensor(self.fill, device=images.device).view(1, 3, 1, 1)
        visible = torch.from_numpy(np.stack(shown)).to(images.device)
        return images.where(visible[:, None], mean)


def inspected_images(
    rows: pa.Table,
    settings: InputSettings,
    device: str,
    chosen: Sequence[int],
    inspection: Inspection,
    before: Sequence[InputSettings] = (),
) -> tuple[Tensor, Tensor]:
    """`to_images`, of which pixels outside of the masks are the mean; and masks (B, size, size).

    Exposure is that of the pixels inside.
    """
    widths, heights = rows["width"].to_pylist(), rows["height"].to_pylist()
    images, shown = _inputs(rows, settings, chosen, before), []
    for place, (row, mask) in enumerate(zip(chosen, inspection.masks, strict=True)):
        pixels, depth, _ = images[place]
        inside = np.ones(pixels.shape[:2], bool)
        if mask:
            inside = mask.on_map(widths[row], heights[row], settings)
        shown.append(inside)
        if settings.exposure != "as_is":
            images[place] = _Image(pixels, depth, statistics_of(pixels[inside][None], depth))
    batch = inspection.applied(_batch(images, settings, device), shown)
    return batch, torch.from_numpy(np.stack(shown)).to(device)


def _packed(
    rows: pa.Table, settings: InputSettings, before: Sequence[InputSettings]
) -> list[Bytes]:
    """The packed input of each row, behind those `before`; none in rows without pixels."""
    if not before:
        return views(rows["pixels"])
    found = []
    kinds = zip(rows["channels"].to_pylist(), rows["bit_depth"].to_pylist(), strict=True)
    for data, kind in zip(views(rows["further_pixels"]), kinds, strict=True):
        if not len(data):
            found.append(data)
            continue
        start = sum(packed_bytes(each, *kind) for each in before[1:])
        found.append(data[start : start + packed_bytes(settings, *kind)])
    return found


def _batch(images: Sequence[_Image], settings: InputSettings, device: str) -> Tensor:
    """Images of one size as (B, 3, H, W) in [0, 1] on the device."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        kinds.setdefault((image.pixels.shape[2], image.bit_depth), []).append(place)
    parts = []
    for (_, depth), places in kinds.items():
        mine = [images[place] for place in places]
        upright = _copied([image.pixels for image in mine], depth, device).permute(0, 3, 1, 2)
        wholes = [image.whole for image in mine if image.whole]
        exposed = normalise_exposure(upright, 2**depth - 1, settings.exposure, wholes)
        parts.append(exposed.expand(-1, 3, -1, -1))
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([place for places in kinds.values() for place in places])
    return torch.cat(parts).index_select(0, order.argsort().to(device))


def _copied(pixels: Sequence[Integers], depth: int, device: str) -> Tensor:
    """Pixels (H, W, C) of some images as integers (n, H, W, C) on the device.

    A GPU copies from pinned memory while the CPU goes on; torch reuses that memory once the copy
    is done.
    """
    stored = torch.uint8 if depth <= 8 else torch.uint16
    pinned = device.startswith("cuda")
    out = torch.empty(len(pixels), *pixels[0].shape, dtype=stored, pin_memory=pinned)
    for image, data in zip(out.numpy(), pixels, strict=True):
        image[...] = data
    return out.to(device, non_blocking=pinned)


class TileBatch(NamedTuple):
    """Some tiles of pictures, in the order of pictures and of each picture's tiles."""

    images: Tensor
    """(B, 3, size, size) in [0, 1], on the device."""
    rows: list[int]
    """The place of each tile's picture among the chosen rows."""
    numbers: list[int]
    """The number of each tile in its picture."""
    inside: Tensor | None
    """Masks (B, size, size), False where a tile is padding or outside of an inspection mask; None
    if all of all tiles counts."""


class Tiles:
    """The tiles of the chosen rows' pictures, which are cut batch by batch."""

    def __init__(
        self,
        rows: pa.Table,
        settings: InputSettings,
        device: str,
        chosen: Sequence[int],
        inspection: Inspection | None = None,
    ) -> None:
        """`rows` have packed pixels of whole scaled pictures; they are views of Arrow's memory.

        Tiles of which nothing is inspected are left out; each picture has one that is not.
        """
        self._settings, self._device = settings, device
        pixels = views(rows["pixels"])
        self._pixels = [pixels[row] for row in chosen]
        kinds = rows.select(["width", "height", "channels", "bit_depth"]).take(
            pa.array(chosen, pa.int64())
        )
        self._kinds = kinds.to_pylist()
        self.tilings: list[Tiling] = [
            tiling(kind["width"], kind["height"], settings) for kind in self._kinds
        ]
        self._whole: tuple[int, Statistics | None] = (-1, None)
        self._inspection = inspection

    def mask(self, row: int) -> InspectionMask | None:
        """The inspection mask of a row, if it has one."""
        return self._inspection.masks[row] if self._inspection else None

    def _shown(self, row: int, number: int) -> Bools:
        """Which pixels (size, size) of a tile are inspected; padding mirrors them."""
        mask, tiles = self.mask(row), self.tilings[row]
        return mask.on_tile(tiles, number) if mask else np.ones((tiles.size, tiles.size), bool)

    def _is_seen(self, row: int, number: int) -> bool:
        if self.mask(row) is None:
            return True
        return bool((self._shown(row, number) & self.tilings[row].inside()).any())

    def batches(self, count: int) -> Iterator[TileBatch]:
        """All tiles, at most `count` at a time, whichever pictures they are of."""
        places = (
            (row, number)
            for row, tiles in enumerate(self.tilings)
            for number in range(tiles.total)
            if self._is_seen(row, number)
        )
        while part := list(itertools.islice(places, count)):
            yield self.cut(part)

    def cut(self, places: Sequence[tuple[int, int]]) -> TileBatch:
        """Tiles by the place of their picture among the chosen rows and their number in it."""
        images = [self._tile(row, number) for row, number in places]
        rows, numbers = [row for row, _ in places], [number for _, number in places]
        batch, inside = _batch(images, self._settings, self._device), None
        if self._inspection or any(self.tilings[row].is_padded for row in rows):
            masks = np.stack([self.tilings[row].inside() for row in rows])
            if self._inspection:
                shown = [self._shown(row, number) for row, number in places]
                batch = self._inspection.applied(batch, shown)
                masks &= np.stack(shown)
            inside = torch.from_numpy(masks).to(self._device)
        return TileBatch(batch, rows, numbers, inside)

    def _tile(self, row: int, number: int) -> _Image:
        tiles, depth = self.tilings[row], self._kinds[row]["bit_depth"]
        picture = self.picture(row)
        if self._settings.exposure != "as_is" and self._whole[0] != row:
            self._whole = row, self._statistics(row, picture)
        pixels: Integers = cut(picture, tiles, number)
        return _Image(pixels, depth, self._whole[1])

    def _statistics(self, row: int, picture: Integers) -> Statistics:
        mask, depth, tiles = self.mask(row), self._kinds[row]["bit_depth"], self.tilings[row]
        if mask is None:
            return statistics_of(picture, depth)
        size = tiles.width, tiles.height
        return statistics_of(picture, depth, lambda start, stop: mask.rows(size, start, stop))

    def map_size(self, row: int) -> tuple[int, int]:
        """Width and height of the anomaly map of a row."""
        kind = self._kinds[row]
        return map_size(kind["width"], kind["height"], self._settings)

    def picture(self, row: int) -> Integers:
        """The scaled picture (height, width, channels) of a row; a view."""
        kind, tiles = self._kinds[row], self.tilings[row]
        packed: Bytes = self._pixels[row]
        return unpack(packed, kind["channels"], kind["bit_depth"], (tiles.width, tiles.height))
