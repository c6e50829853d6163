"""Scores rows with pixels by the detector of their product; rows of failed images pass through."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ops.detectors.detector import Detector
from ops.detectors.model_folder import ModelCard
from ops.images.exposure import normalise_exposure
from ops.images.resize import InputSettings, unpack

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
    ) -> None:
        """`keep` leaves the column of pixels in the rows, for overlays."""
        torch.set_num_threads(threads)
        self._tensors = tensors
        self._card = tensors.card
        self._keep = keep
        self._device = device
        self._backbone = self._card.new_backbone(tensors.of_backbone(), device)
        self._memory = memory
        self._detectors: OrderedDict[str, _Cached] = OrderedDict()
        self._cached_bytes = 0

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows in the same order, with `SCORE_COLUMNS`."""
        results: list[dict[str, Any]] = [{} for _ in range(len(rows))]
        status, reason = rows["status"].to_pylist(), rows["reason"].to_pylist()
        products = rows["product"].to_pylist()
        for product in dict.fromkeys(p for p, s in zip(products, status, strict=True) if s == "ok"):
            chosen = [i for i, p in enumerate(products) if p == product and status[i] == "ok"]
            images = to_images(rows.take(chosen), self._card.input, self._device)
            for i, result in zip(chosen, self._score(product, images), strict=True):
                results[i] = result
                if result.get("score") is None:
                    status[i], reason[i] = "undefined", "the detector's score is not finite"
        scores = pa.Table.from_pylist(results, SCORE_COLUMNS)
        for name in SCORE_COLUMNS.names:
            rows = rows.append_column(name, scores[name])
        rows = rows.set_column(rows.schema.get_field_index("status"), "status", pa.array(status))
        texts = pa.array(reason, pa.string())
        rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", texts)
        return rows if self._keep else rows.drop_columns(["pixels"])

    def _score(self, product: str, images: Tensor) -> list[dict[str, Any]]:
        scores = self._detector(product).score(images)
        calibration = self._card.products[product].calibration
        threshold = calibration.threshold(self._card.false_alarm_rate)
        values = scores.image.double().cpu().numpy()
        p_values = calibration.p_values(values)
        maps = scores.map.float().cpu().numpy()
        return [
            {
                "score": float(value),
                "p_value": None if threshold is None else float(p),
                "is_anomalous": None if threshold is None else bool(value > threshold),
                "grid_width": grid.shape[1],
                "patch_scores": grid.astype("<f4").tobytes(),
            }
            if math.isfinite(value) and np.isfinite(grid).all()
            else {}
            for value, p, grid in zip(values, p_values, maps, strict=True)
        ]

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


def to_images(rows: pa.Table, settings: InputSettings, device: str) -> Tensor:
    """Images (B, 3, size, size) in [0, 1] on the device, exposed by the settings."""
    columns = (rows[name].to_pylist() for name in ("pixels", "channels", "bit_depth"))
    images = [
        # Integers are smaller to copy to the device, where each image is divided by its full scale.
        normalise_exposure(
            torch.from_numpy(unpack(data, channels, depth, settings.size)).to(device),
            2**depth - 1,
            settings.exposure,
        ).expand(3, -1, -1)
        for data, channels, depth in zip(*columns, strict=True)
    ]
    return torch.stack(images)
