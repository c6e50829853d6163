"""Scores rows with pixels by the detector of their product; rows of failed images pass through."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ops.archives.views import detector_names
from ops.detectors.detector import Detector
from ops.detectors.model_folder import ModelCard
from ops.images.exposure import normalise_exposure
from ops.images.packed_pixels import Bytes, views
from ops.images.resize import InputSettings

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
        status, reason = rows["status"].to_pylist(), rows["reason"].to_pylist()
        products = detector_names(rows, self._card.views).to_pylist()
        found: dict[str, list[Any]] = {name: [None] * len(rows) for name in SCORE_COLUMNS.names}
        for product in dict.fromkeys(p for p, s in zip(products, status, strict=True) if s == "ok"):
            chosen = [i for i, p in enumerate(products) if p == product and status[i] == "ok"]
            images = to_images(rows, self._card.input, self._device, chosen)
            for i in self._score(product, images, chosen, found):
                status[i], reason[i] = "undefined", "the detector's score is not finite"
        for column in SCORE_COLUMNS:
            rows = rows.append_column(column, pa.array(found[column.name], column.type))
        rows = rows.set_column(rows.schema.get_field_index("status"), "status", pa.array(status))
        texts = pa.array(reason, pa.string())
        rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", texts)
        return rows if self._keep else rows.drop_columns(["pixels"])

    def _score(
        self, product: str, images: Tensor, chosen: list[int], found: dict[str, list[Any]]
    ) -> list[int]:
        """Fill in the columns of the chosen rows; those whose score is not finite."""
        scores = self._detector(product).score(images)
        calibration = self._card.products[product].calibration
        threshold = calibration.threshold(self._card.false_alarm_rate)
        values = scores.image.double().cpu().numpy()
        maps = scores.map.float().cpu().numpy().astype("<f4", copy=False)
        finite = np.isfinite(values) & np.isfinite(maps.reshape(len(maps), -1)).all(axis=1)
        p_values = calibration.p_values(values).tolist()
        for n, i in enumerate(chosen):
            if not finite[n]:
                continue
            found["score"][i] = float(values[n])
            if threshold is not None:
                found["p_value"][i] = p_values[n]
                found["is_anomalous"][i] = bool(values[n] > threshold)
            found["grid_width"][i] = maps.shape[2]
            found["patch_scores"][i] = maps[n].tobytes()
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


def to_images(
    rows: pa.Table, settings: InputSettings, device: str, chosen: Sequence[int] | None = None
) -> Tensor:
    """Images (B, 3, size, size) in [0, 1] on the device, exposed by the settings.

    They are those of the chosen rows, or of all. Integers are copied to the device, which are
    smaller, and divided by their full scale there.
    """
    chosen = range(len(rows)) if chosen is None else chosen
    pixels = views(rows["pixels"])
    channels, depths = rows["channels"].to_pylist(), rows["bit_depth"].to_pylist()
    kinds: dict[tuple[int, int], list[int]] = {}
    for place, row in enumerate(chosen):
        kinds.setdefault((channels[row], depths[row]), []).append(place)
    parts = []
    for (width, depth), places in kinds.items():
        shape = (settings.size, settings.size, width)
        stored = _copied([pixels[chosen[place]] for place in places], depth, shape, device)
        upright = stored.permute(0, 3, 1, 2)
        exposed = normalise_exposure(upright, 2**depth - 1, settings.exposure)
        parts.append(exposed.expand(-1, 3, -1, -1))
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([place for places in kinds.values() for place in places])
    return torch.cat(parts).index_select(0, order.argsort().to(device))


def _copied(pixels: list[Bytes], depth: int, shape: tuple[int, int, int], device: str) -> Tensor:
    """Packed pixels of some images as integers (n, *shape) on the device.

    A GPU copies from pinned memory while the CPU goes on; torch reuses that memory once the copy
    is done.
    """
    stored, values = (torch.uint8, "<u1") if depth <= 8 else (torch.uint16, "<u2")
    pinned = device.startswith("cuda")
    out = torch.empty(len(pixels), *shape, dtype=stored, pin_memory=pinned)
    for image, data in zip(out.numpy(), pixels, strict=True):
        image[...] = data.view(values).reshape(shape)
    return out.to(device, non_blocking=pinned)
