"""Scores rows with pixels by the detector of their product; rows of failed images pass through."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ops.archives.views import detector_names
from ops.detectors.ensemble import loaded
from ops.detectors.loaded_model import ModelTensors
from ops.detectors.score_tiles import previews
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


class ScoreImages:
    """Holds a model or an ensemble, with detectors of up to `memory` bytes, but at least one."""

    def __init__(
        self,
        tensors: ModelTensors,
        device: str = "cpu",
        threads: int = 1,
        memory: int = 2**32,
        keep: bool = False,
        batch: int = 16,
        thresholds: Mapping[str, float | None] | None = None,
    ) -> None:
        """`keep` leaves the pixels in the rows, for overlays; with tiles, in the size of maps.

        `batch`: tiles that are scored together. Pictures must be covered by the model's masks, as
        `Read` does. `thresholds`: by product, as of `ModelCard.thresholds`; default: the model's.
        """
        torch.set_num_threads(threads)
        self._card = tensors.card
        self._thresholds = tensors.card.thresholds({}) if thresholds is None else thresholds
        self._keep = keep
        self._model = loaded(tensors, device, memory, batch)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows in the same order, with `SCORE_COLUMNS`."""
        status, reason = rows["status"].to_pylist(), rows["reason"].to_pylist()
        products = detector_names(rows, self._card.views).to_pylist()
        found: dict[str, list[Any]] = {name: [None] * len(rows) for name in SCORE_COLUMNS.names}
        for product in dict.fromkeys(p for p, s in zip(products, status, strict=True) if s == "ok"):
            chosen = [i for i, p in enumerate(products) if p == product and status[i] == "ok"]
            values, maps = self._model.scores(product, rows, chosen, self.step)
            for i in self._fill(product, chosen, values, maps, found):
                status[i], reason[i] = "undefined", "the detector's score is not finite"
        for column in SCORE_COLUMNS:
            rows = rows.append_column(column, pa.array(found[column.name], column.type))
        rows = rows.set_column(rows.schema.get_field_index("status"), "status", pa.array(status))
        texts = pa.array(reason, pa.string())
        rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", texts)
        if "further_pixels" in rows.schema.names:
            rows = rows.drop_columns(["further_pixels"])
        return self._with_pictures(rows) if self._keep else rows.drop_columns(["pixels"])

    def _with_pictures(self, rows: pa.Table) -> pa.Table:
        """The rows with the pixels that maps are drawn over."""
        if not self.tiled:
            return rows
        pictures = previews(rows, self._card.input)
        return rows.set_column(rows.schema.get_field_index("pixels"), "pixels", pictures)

    @property
    def tiled(self) -> bool:
        """Whether rows hold whole pictures, of which tiles are scored."""
        return self._card.input.tiled

    def step(self) -> contextlib.AbstractContextManager[None]:
        """The context of scoring one batch of tiles, or of whole pictures beside them."""
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
        threshold = self._thresholds[product]
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
