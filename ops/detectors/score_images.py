"""Scores rows with pixels by the detector of their product; rows of failed images pass through."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ops.archives.views import detector_names
from ops.detectors.detector import Detector, extended_maps
from ops.detectors.image_batches import Inspection, Tiles, inspected_images, to_images
from ops.detectors.model_folder import ModelCard
from ops.detectors.score_tiles import previews, score_tiles
from ops.images.inspection import InspectionMask
from ops.results.anomaly_map import Map

#: Columns that `ScoreImages` adds.
SCORE_COLUMNS = pa.schema(
    [
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("is_anomalous", pa.bool_()),
        ("grid_width", pa.int32()),
        ("patch_scores", pa.large_binary()),  # float32, row by row
    ]
)


class ModelTensors(Protocol):
    """Where a worker gets the tensors of a model from."""

    @property
    def card(self) -> ModelCard:
        """The model's card."""

    def of_backbone(self) -> dict[str, Tensor]:
        """The tensors of the backbone."""

    def of_product(self, product: str) -> dict[str, Tensor]:
        """The tensors of a product's detector."""


class ScoreImages:
    """Holds the backbone, and a cache of detectors of up to `memory` bytes, but at least one.

    Detectors are loaded when a row needs them; the least recently used are evicted first.
    """

    def __init__(
        self,
        tensors: ModelTensors,
        device: str = "cpu",
        threads: int = 1,
        memory: int = 2**32,
        keep: bool = False,
        batch: int = 16,
        masks: Mapping[str, InspectionMask] | None = None,
    ) -> None:
        """`keep` leaves the pixels in the rows, for overlays; with tiles, in the size of maps.

        `batch`: tiles that are scored together. `masks`: inspection masks by detector; pictures
        must be covered by them, as `Read` does.
        """
        torch.set_num_threads(threads)
        self._tensors = tensors
        self._card = tensors.card
        self._keep = keep
        self._batch = batch
        self._masks = masks or {}
        self._device = device
        self._backbone = self._card.new_backbone(tensors.of_backbone(), device)
        self._memory = memory
        self._detectors: OrderedDict[str, _Cached] = OrderedDict()
        self._cached_bytes = 0

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows in the same order, with `SCORE_COLUMNS`."""
        status, reason = rows["status"].to_pylist(), rows["reason"].to_pylist()
        products = detector_names(rows, self._card.views).to_pylist()
        found: dict[str, list[Any]] = {name: [None] * len(rows) for name in SCORE_COLUMNS.names}
        for product in dict.fromkeys(p for p, s in zip(products, status, strict=True) if s == "ok"):
            chosen = [i for i, p in enumerate(products) if p == product and status[i] == "ok"]
            values, maps = self._scores(product, rows, chosen)
            for i in self._fill(product, chosen, values, maps, found):
                status[i], reason[i] = "undefined", "the detector's score is not finite"
        for column in SCORE_COLUMNS:
            rows = rows.append_column(column, pa.array(found[column.name], column.type))
        rows = rows.set_column(rows.schema.get_field_index("status"), "status", pa.array(status))
        texts = pa.array(reason, pa.string())
        rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", texts)
        if self._keep and self.tiled:
            place = rows.schema.get_field_index("pixels")
            return rows.set_column(place, "pixels", previews(rows, self._card.input))
        return rows if self._keep else rows.drop_columns(["pixels"])

    @property
    def tiled(self) -> bool:
        """Whether rows hold whole pictures, of which tiles are scored."""
        return self._card.input.tiled

    def _scores(
        self, product: str, rows: pa.Table, chosen: list[int]
    ) -> tuple[npt.NDArray[np.float64], Sequence[Map]]:
        """Score (B,) and map (h, w) of each of the chosen rows."""
        detector, where = self._detector(product), (self._card.input, self._device, chosen)
        inspection = self._inspection(product, len(chosen))
        if self.tiled:
            return score_tiles(detector, Tiles(rows, *where, inspection), self._batch, self.step)
        if inspection is None:
            scores = detector.score(to_images(rows, *where))
            return scores.image.double().cpu().numpy(), list(scores.map.float().cpu().numpy())
        images, inside = inspected_images(rows, *where, inspection)
        scores = detector.score_inside(images, inside)
        maps = list(scores.map.float().cpu().numpy())
        maps = extended_maps(maps, inside, [True] * len(chosen))
        return scores.image.double().cpu().numpy(), maps

    def _inspection(self, product: str, count: int) -> Inspection | None:
        if (mask := self._masks.get(product)) is None:
            return None
        return Inspection([mask] * count, self._card.backbone.normalisation[0])

    def step(self) -> contextlib.AbstractContextManager[None]:
        """The context of scoring one batch of tiles."""
        return contextlib.nullcontext()

    def _fill(
        self,
        product: str,
        chosen: list[int],
        values: npt.NDArray[np.float64],
        maps: Sequence[Map],
        found: dict[str, list[Any]],
    ) -> list[int]:
        """Fill in the columns of the chosen rows; those whose score is not finite."""
        calibration = self._card.products[product].calibration
        threshold = calibration.threshold(self._card.false_alarm_rate)
        finite = [
            bool(np.isfinite(value) and np.isfinite(one).all())
            for value, one in zip(values, maps, strict=True)
        ]
        p_values = calibration.p_values(values).tolist()
        for n, i in enumerate(chosen):
            if not finite[n]:
                continue
            found["score"][i] = float(values[n])
            if threshold is not None:
                found["p_value"][i] = p_values[n]
                found["is_anomalous"][i] = bool(values[n] > threshold)
            found["grid_width"][i] = maps[n].shape[1]
            found["patch_scores"][i] = maps[n].astype("<f4", copy=False).tobytes()
        return [i for n, i in enumerate(chosen) if not finite[n]]

    def _detector(self, product: str) -> Detector:
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
