"""From patch scores to anomaly maps: peaks, regions, and the PNG files that a run asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from ops.archives.views import Views, detector_name
from ops.images.inspection import InspectionMask
from ops.images.packed_pixels import views
from ops.images.resize import InputSettings, geometry, map_size, unpack
from ops.results import anomaly_map, map_png, overlays, region_table
from ops.results.anomaly_map import Map, Scale
from ops.results.overlays import Pixels8
from ops.results.regions import RegionRules
from ops.storage import files, uris
from ops.storage.paths import Out
from ops.storage.storage_errors import StorageError

#: Which images of a run get a PNG of their map.
Policy = Literal["none", "flagged", "all"]
#: The columns that `DrawMaps` adds. `map_error` says why a map that should exist was not written.
MAP_COLUMNS = pa.schema(
    [
        ("peak_x", pa.int32()),
        ("peak_y", pa.int32()),
        ("map_largest", pa.float64()),  # the value at the peak
        ("regions", region_table.LIST),
        ("regions_hidden", pa.int64()),
        ("map_uri", pa.string()),
        ("saturated", pa.bool_()),
        ("map_error", pa.string()),
    ]
)


#: Columns that a map is drawn from, besides packed pixels.
_DRAWN = (
    "status",
    "image_id",
    "product",
    "view",
    "width",
    "height",
    "channels",
    "bit_depth",
    "is_anomalous",
    "grid_width",
)


def _described(rows: pa.Table) -> list[dict[str, Any]]:
    """The rows as far as maps need them; packed numbers are views of Arrow's memory."""
    names = rows.schema.names
    described: list[dict[str, Any]] = rows.select([n for n in _DRAWN if n in names]).to_pylist()
    for name in ("patch_scores", "pixels"):
        if name in names:
            for row, packed in zip(described, views(rows[name]), strict=True):
                row[name] = packed
    return described


class _Target:
    """Where the maps of a batch are written, until that fails."""

    def __init__(self) -> None:
        self.error = ""

    def write(self, location: str, data: bytes) -> None:
        if self.error:
            return
        try:
            files.write_bytes(location, data)
        except StorageError as error:
            self.error = str(error)


def of_picture(
    patch_scores: Map, width: int, height: int, settings: InputSettings, sigma: float
) -> Map:
    """The smoothed map of a picture of this size; `sigma` is in pixels that the network sees."""
    if not settings.tiled:
        return anomaly_map.upsample(patch_scores, settings.sides, sigma)
    size = map_size(width, height, settings)
    # From pixels of tiles to those of the map, which may be larger.
    across, down = (
        sigma / (step * settings.scale) for step in geometry(width, height, settings)[:2]
    )
    return anomaly_map.enlarge(patch_scores, size, (across, down))


@dataclass(frozen=True)
class DrawMaps:
    """Finds peaks and regions of maps, and writes the maps that `policy` selects.

    A map that cannot be written does not cost the score: its row says why. After the first such
    map of a batch, no other map of the batch is tried, because a store may take long to fail.
    The address of a map depends on the model and the image alone, so repeating a batch overwrites
    each file with the same content.
    """

    model_id: str
    input: InputSettings
    scale: Scale
    sigma: float
    thresholds: Mapping[str, float | None]
    out: Out
    policy: Policy
    overlays: bool = False
    views: Views = "pooled"
    masks: Mapping[str, InspectionMask] = field(default_factory=dict)
    """Inspection masks by detector; outside of them maps have the lowest value."""
    regions: RegionRules = field(default_factory=RegionRules)
    columns: ClassVar[pa.Schema] = MAP_COLUMNS

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One row out for every row in, in the same order, without patch scores and pixels."""
        target = _Target()
        added = [
            self._added(row, target) if row["status"] == "ok" else {} for row in _described(rows)
        ]
        rows = rows.drop_columns(
            [c for c in ("patch_scores", "grid_width", "pixels") if c in rows.schema.names]
        )
        for column in self.columns:
            values = [row.get(column.name) for row in added]
            rows = rows.append_column(column, pa.array(values, column.type))
        return rows

    def _added(self, row: dict[str, Any], target: _Target) -> dict[str, object]:
        """The added columns of an ok row."""
        patch_scores = np.frombuffer(row["patch_scores"], "<f4").reshape(-1, row["grid_width"])
        values = of_picture(patch_scores, row["width"], row["height"], self.input, self.sigma)
        return self._draw(row, self._inspected(row, values), target)

    def _inspected(self, row: dict[str, Any], values: Map) -> Map:
        """The map of a row, -inf where nothing is inspected, which the lowest level stands for."""
        mask = self.masks.get(detector_name(row, self.views)) if self.masks else None
        if mask is None:
            return values
        inside = mask.on_map(row["width"], row["height"], self.input)
        return np.where(inside, values, np.float32(-np.inf))

    def _draw(self, row: dict[str, Any], values: Map, target: _Target) -> dict[str, object]:
        """The added columns of a row with this map; writes its files."""
        where = geometry(row["width"], row["height"], self.input)
        x, y = anomaly_map.peak(values, where)
        top = self.scale.offset + self.scale.scale * (anomaly_map.LEVELS - 1)
        added: dict[str, object] = {
            "peak_x": min(x, row["width"] - 1),
            "peak_y": min(y, row["height"] - 1),
            "map_largest": float(values.max()),
            "saturated": bool(values.max() > top),
        }
        size, name = (row["width"], row["height"]), detector_name(row, self.views)
        if found := self.regions.find(values, where, size, name):
            added["regions"] = [region._asdict() for region in found.regions]
            added["regions_hidden"] = found.hidden
        if self.policy == "all" or (self.policy == "flagged" and row["is_anomalous"]):
            location = self.out.map(self.model_id, row["image_id"])
            target.write(location, map_png.encode(values, self.scale, where, self.model_id))
            if self.overlays:
                _, overlay = self._picture_and_overlay(row, values)
                place = self.out.overlay(self.model_id, row["image_id"])
                target.write(place, overlays.to_png(overlay))
            if target.error:
                added["map_error"] = target.error
            else:
                added["map_uri"] = uris.make(location)
        return added

    def _picture_and_overlay(self, row: dict[str, Any], values: Map) -> tuple[Pixels8, Pixels8]:
        """The detector's input (h, w, 3) in 8 bits, and the overlay of its map."""
        depth = row["bit_depth"]
        size = map_size(row["width"], row["height"], self.input)
        pixels = unpack(row["pixels"], row["channels"], depth, size)
        colours = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
        picture = (colours / (2**depth - 1) * 255).astype(np.uint8)
        threshold = self.thresholds[detector_name(row, self.views)]
        return picture, overlays.overlay(picture, values, self.scale, threshold)


class DrawSketches(DrawMaps):
    """Also adds a column `sketch`: a small PNG of each picture above its overlay."""

    columns = MAP_COLUMNS.append(pa.field("sketch", pa.binary()))

    def _draw(self, row: dict[str, Any], values: Map, target: _Target) -> dict[str, object]:
        sketch = overlays.sheet_column(self._picture_and_overlay(row, values))
        return super()._draw(row, values, target) | {"sketch": overlays.to_png(sketch)}
