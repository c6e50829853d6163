"""Patch scores to maps: where the peak lies, and the PNG files that were asked for."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from ops.images.resize import InputSettings, geometry, unpack
from ops.results import anomaly_map
from ops.results.anomaly_map import Scale
from ops.storage import files, uris
from ops.storage.paths import Out

Colours = npt.NDArray[np.uint8]
Policy = Literal["none", "flagged", "all"]
#: Pixels along a side of the pictures in a sketch.
_SKETCH = 128
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
    columns: ClassVar[pa.Schema] = DRAWN

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One row out for every row in, in the same order; patch scores and pixels end here."""
        drawn = [self._one(row) if row["status"] == "ok" else {} for row in rows.to_pylist()]
        rows = rows.drop_columns(
            [c for c in ("patch_scores", "grid_width", "pixels") if c in rows.schema.names]
        )
        table = pa.Table.from_pylist(drawn, self.columns)
        for name in self.columns.names:
            rows = rows.append_column(name, table[name])
        return rows

    def _one(self, row: dict[str, Any]) -> dict[str, object]:
        cells = np.frombuffer(row["patch_scores"], "<f4").reshape(-1, row["grid_width"])
        return self._drawn(row, anomaly_map.draw(cells, self.input.size, self.sigma))

    def _drawn(self, row: dict[str, Any], values: anomaly_map.Map) -> dict[str, object]:
        where = geometry(row["width"], row["height"], self.input)
        x, y = anomaly_map.peak(values, where)
        top = self.scale.offset + self.scale.scale * (anomaly_map.LEVELS - 1)
        out: dict[str, object] = {
            "peak_x": min(x, row["width"] - 1),
            "peak_y": min(y, row["height"] - 1),
            "saturated": bool(values.max() > top),
        }
        if self.policy == "all" or (self.policy == "flagged" and row["is_anomalous"]):
            location = self.out.map(self.model_id, row["image_id"])
            png = anomaly_map.encode(values, self.scale, where, self.model_id)
            files.write_bytes(location, png)
            out["map_uri"] = uris.make(location)
            if self.overlays:
                self._overlay(row, values)
        return out

    def _overlay(self, row: dict[str, Any], values: anomaly_map.Map) -> None:
        _, blended = self._blended(row, values)
        location = self.out.overlay(self.model_id, row["image_id"])
        files.write_bytes(location, _png(Image.fromarray(blended)))

    def _blended(self, row: dict[str, Any], values: anomaly_map.Map) -> tuple[Colours, Colours]:
        """The picture at the input's size (h, w, 3), and with its map laid over it."""
        depth = row["bit_depth"]
        pixels = unpack(row["pixels"], row["channels"], depth, self.input.size)
        grey = pixels[[0] * 3 if len(pixels) == 1 else slice(None)]
        picture = (grey / (2**depth - 1) * 255).astype(np.uint8).transpose(1, 2, 0)
        threshold = self.thresholds[row["product"]]
        low = float(values.max()) / 2 if threshold is None else threshold
        return picture, anomaly_map.blended(picture, values, self.scale, low)


class Sketched(DrawMaps):
    """Also adds a column `sketch`: a small PNG of each picture, with its map laid over it below.

    Without a threshold, colours show where each picture scores highest, however low that is.
    """

    columns = DRAWN.append(pa.field("sketch", pa.binary()))

    def _drawn(self, row: dict[str, Any], values: anomaly_map.Map) -> dict[str, object]:
        both = Image.new("RGB", (_SKETCH, 2 * _SKETCH))
        for place, picture in enumerate(self._blended(row, values)):
            small = Image.fromarray(picture).resize((_SKETCH, _SKETCH), Image.Resampling.LANCZOS)
            both.paste(small, (0, place * _SKETCH))
        return super()._drawn(row, values) | {"sketch": _png(both)}


def sheet(sketches: Sequence[bytes]) -> bytes:
    """Sketches side by side, as one PNG."""
    whole = Image.new("RGB", (_SKETCH * max(1, len(sketches)), 2 * _SKETCH))
    for column, sketch in enumerate(sketches):
        with Image.open(io.BytesIO(sketch)) as pair:
            whole.paste(pair, (column * _SKETCH, 0))
    return _png(whole)


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
