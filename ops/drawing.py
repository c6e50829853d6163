"""Patch scores to maps: where the peak lies, and the PNG files that were asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ops import maps, storage, uris
from ops.layout import Out
from ops.maps import Scale
from ops.resize import InputSettings, geometry, unpack

Policy = Literal["none", "flagged", "all"]
#: What drawing adds to the columns of its rows.
DRAWN = pa.schema(
    [
        ("peak_x", pa.int32()),
        ("peak_y", pa.int32()),
        ("map_uri", pa.string()),
        ("saturated", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class DrawMaps:
    """Finds peaks, and writes the maps that `policy` asks for.

    A map's address follows from the model and the image alone, so writing it again changes nothing.
    """

    model_id: str
    input: InputSettings
    scale: Scale
    sigma: float
    thresholds: Mapping[str, float | None]
    out: Out
    policy: Policy
    overlays: bool = False

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One row out for every row in, in the same order; patch scores and pixels end here."""
        drawn = [self._one(row) if row["status"] == "ok" else {} for row in rows.to_pylist()]
        rows = rows.drop_columns(
            [c for c in ("patch_scores", "grid_width", "pixels") if c in rows.schema.names]
        )
        table = pa.Table.from_pylist(drawn, DRAWN)
        for name in DRAWN.names:
            rows = rows.append_column(name, table[name])
        return rows

    def _one(self, row: dict[str, Any]) -> dict[str, object]:
        size = self.input.size
        cells = np.frombuffer(row["patch_scores"], "<f4").reshape(-1, row["grid_width"])
        values = maps.draw(cells, size, self.sigma)
        where = geometry(row["width"], row["height"], self.input)
        x, y = maps.peak(values, where)
        top = self.scale.offset + self.scale.scale * (maps.LEVELS - 1)
        out: dict[str, object] = {
            "peak_x": min(x, row["width"] - 1),
            "peak_y": min(y, row["height"] - 1),
            "saturated": bool(values.max() > top),
        }
        if self.policy == "all" or (self.policy == "flagged" and row["is_anomalous"]):
            location = self.out.map(self.model_id, row["image_id"])
            png = maps.encode(values, self.scale, where, self.model_id)
            storage.write_bytes(location, png)
            out["map_uri"] = uris.make(location)
            if self.overlays:
                self._overlay(row, values)
        return out

    def _overlay(self, row: dict[str, Any], values: maps.Map) -> None:
        depth = row["bit_depth"]
        pixels = unpack(row["pixels"], row["channels"], depth, self.input.size)
        picture = (pixels[[0] * 3 if len(pixels) == 1 else slice(None)] / (2**depth - 1)) * 255
        threshold = self.thresholds[row["product"]]
        low = float(values.max()) / 2 if threshold is None else threshold
        png = maps.overlay(picture.astype(np.uint8).transpose(1, 2, 0), values, self.scale, low)
        storage.write_bytes(self.out.overlay(self.model_id, row["image_id"]), png)
