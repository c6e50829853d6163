"""A model whose backbone is loaded, and that loads its detectors as rows need them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from ops.detectors.detector import Detector, extended_maps
from ops.detectors.image_batches import Inspection, Tiles, inspected_images, to_images
from ops.detectors.model_card import ModelCard
from ops.detectors.score_tiles import score_tiles
from ops.images.inspection import InspectionMask
from ops.images.resize import InputSettings
from ops.results.anomaly_map import Map

#: Gives the context of scoring one batch of tiles, or of whole pictures beside them.
Step = Callable[[], AbstractContextManager[None]]


class ImageScores(NamedTuple):
    """What a model says of some rows."""

    values: npt.NDArray[np.float64]
    """Scores (B,)."""
    maps: Sequence[Map]
    """A map (h, w) of each."""


class ModelTensors(Protocol):
    """Where a worker gets the tensors of a model from."""

    @property
    def card(self) -> ModelCard:
        """The model's card."""

    @property
    def masks(self) -> Mapping[str, InspectionMask]:
        """Inspection masks by detector."""

    @property
    def members(self) -> Sequence[ModelTensors]:
        """The members of an ensemble. Asked for only if the card has members."""

    def of_backbone(self) -> dict[str, Tensor]:
        """The tensors of the backbone."""

    def of_product(self, product: str) -> dict[str, Tensor]:
        """The tensors of a product's detector."""


class LoadedModel:
    """Holds the backbone, and a cache of detectors of up to `memory` bytes, but at least one.

    Detectors are loaded when a row needs them; the least recently used are evicted first.
    """

    def __init__(
        self,
        tensors: ModelTensors,
        device: str,
        memory: int,
        batch: int,
        before: Sequence[InputSettings] = (),
    ) -> None:
        """`batch`: tiles or pictures that are scored together; `before` as in `to_images`."""
        self._tensors, self._card = tensors, tensors.card
        self._device, self._batch, self._before = device, batch, before
        self._backbone = self._card.new_backbone(tensors.of_backbone(), device)
        self._memory = memory
        self._detectors: OrderedDict[str, _Cached] = OrderedDict()
        self._cached_bytes = 0

    def scores(
        self, product: str, rows: pa.Table, chosen: Sequence[int], step: Step
    ) -> ImageScores:
        """Scores of the chosen rows, whose pixels are packed."""
        detector, settings = self.detector(product), self._card.input
        if settings.tiled:
            inspection = self._inspection(product, len(chosen))
            tiles = Tiles(rows, settings, self._device, chosen, inspection)
            return ImageScores(*score_tiles(detector, tiles, self._batch, step))
        # Beside large pictures that are tiled there may be any number of small ones.
        parts = []
        for start in range(0, len(chosen), self._batch):
            with step():
                parts.append(self._whole(product, rows, chosen[start : start + self._batch]))
        values = np.concatenate([part.values for part in parts])
        return ImageScores(values, [one for part in parts for one in part.maps])

    def image(self, product: str, rows: pa.Table, tile: int) -> Tensor:
        """The input (1, 3, height, width) of the first row, or of one of its tiles."""
        where, inspection = (self._card.input, self._device, [0]), self._inspection(product, 1)
        if self._card.input.tiled:
            return Tiles(rows, *where, inspection).cut([(0, tile)]).images
        if inspection is None:
            return to_images(rows, *where)
        return inspected_images(rows, *where, inspection)[0]

    def _whole(self, product: str, rows: pa.Table, chosen: Sequence[int]) -> ImageScores:
        """Scores of inputs that are no tiles."""
        detector, inspection = self.detector(product), self._inspection(product, len(chosen))
        where = self._card.input, self._device, chosen
        if inspection is None:
            scores = detector.score(to_images(rows, *where, self._before))
            maps = list(scores.map.float().cpu().numpy())
        else:
            images, inside = inspected_images(rows, *where, inspection, self._before)
            scores = detector.score_inside(images, inside)
            maps = list(scores.map.float().cpu().numpy())
            maps = extended_maps(maps, inside, [True] * len(chosen))
        return ImageScores(scores.image.double().cpu().numpy(), maps)

    def _inspection(self, product: str, count: int) -> Inspection | None:
        if (mask := self._tensors.masks.get(product)) is None:
            return None
        return Inspection([mask] * count, self._card.backbone.normalisation[0])

    def detector(self, product: str) -> Detector:
        """The detector of a product."""
        file = self._card.products[product].file  # products of a joint model share one
        if file not in self._detectors:
            state = self._tensors.of_product(product)
            size = sum(t.numel() * t.element_size() for t in state.values())
            while self._detectors and size + self._cached_bytes > self._memory:
                _, evicted = self._detectors.popitem(last=False)
                self._cached_bytes -= evicted.bytes
            self._cached_bytes += size
            self._detectors[file] = _Cached(self._card.new_detector(state, self._backbone), size)
        self._detectors.move_to_end(file)
        return self._detectors[file].detector


class _Cached(NamedTuple):
    detector: Detector
    bytes: int
