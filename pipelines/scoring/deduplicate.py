"""Scores of earlier runs are reused for images with the same content, under another name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.archives.fetch import OTHER_CHANGE_TIME
from ops.archives.views import Views, detector_sql
from ops.images.content_index import KEY, Contents
from ops.images.read_images import KNOWN
from ops.results import region_table
from ops.results.regions import RegionSettings
from ops.storage import files, uris
from ops.storage.paths import Out
from ops.storage.storage_errors import StorageError
from pipelines.scoring.chunks import ROWS
from pipelines.scoring.read_stage import INVENTORY_ROW
from pipelines.scoring.run import ScoreSettings
from pipelines.tables import current_scores, run_records

_COPIED = (
    "width",
    "height",
    "bit_depth",
    "score",
    "p_value",
    "is_anomalous",
    "peak_x",
    "peak_y",
    "map_uri",
)
_THRESHOLDS = pa.schema([("detector", pa.string()), ("threshold", pa.float64())])
_CREATE_SCORED = f"""
    CREATE TEMP TABLE scored AS
    SELECT {{key}} AS key, content_sha256, {{detector}} AS detector, reason,
        {{regions}} AS regions, {", ".join(_COPIED)}
    FROM (
        SELECT rows.* REPLACE (score > threshold AS is_anomalous) FROM scores_of($model) AS rows
        LEFT JOIN thresholds ON thresholds.detector = {{detector}}
    ) {{found}} WHERE status = 'ok' AND {{has_map}} ORDER BY key
"""  # noqa: S608 - only names from this file
#: The regions of each image with any, in the runs that told regions by the same settings.
_CREATE_REGIONS = f"""
    CREATE TEMP TABLE found AS
    SELECT image_id, run_id, list({{{", ".join(f"{c}: {c}" for c in region_table.MEASURED)}}}
        ORDER BY number) AS regions
    FROM regions_of($model) WHERE run_id IN (SELECT unnest($runs)) GROUP BY image_id, run_id
"""  # noqa: S608 - only names from this file
_IN_RUNS = """
    JOIN (SELECT unnest($runs) AS run_id) AS alike USING (run_id)
    LEFT JOIN found USING (image_id, run_id)
"""
#: Maps whose place was written for two contents: an image that kept its version had other bytes
#: (see `verify_content`), so the map is of the later ones.
_OVERWRITTEN = """
    map_uri IN (
        SELECT map_uri FROM scores_of($model) WHERE status = 'ok' AND map_uri IS NOT NULL
        GROUP BY map_uri HAVING min(content_sha256) <> max(content_sha256)
    )
"""
#: Notes about the file, then about its content; the note about another file does not belong here.
_REASON = f"""nullif(concat_ws('; ', known.reason, nullif(
    regexp_replace(scored.reason, '^{OTHER_CHANGE_TIME}(; )?', ''), '')), '')"""
_JOIN_SCORED = f"""
    SELECT known.* REPLACE ('ok' AS status, {_REASON} AS reason,
        {", ".join(f"scored.{c} AS {c}" for c in (*_COPIED, "regions"))})
    FROM (SELECT *, {{key}} AS key, {{detector}} AS detector FROM known) AS known JOIN scored
        ON known.key = scored.key AND known.content_sha256 = scored.content_sha256
        AND known.detector = scored.detector
    QUALIFY row_number() OVER (PARTITION BY known.{INVENTORY_ROW}) = 1
"""  # noqa: S608 - only names from this file
#: Earlier rows that have the map that a new row needs, by policy and overlays. An overlay needs the
#: image, so images that need one are scored again.
_HAS_MAP = {
    ("none", False): "true",
    ("none", True): "true",
    ("flagged", False): "(NOT is_anomalous OR map_uri IS NOT NULL)",
    ("flagged", True): "NOT is_anomalous",
    ("all", False): "map_uri IS NOT NULL",
    ("all", True): "false",
}


class ScoreCache:
    """Scores of earlier runs under one model, by content hash and detector."""

    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        out: Out,
        model_id: str,
        settings: ScoreSettings,
        thresholds: Mapping[str, float | None],
        views: Views = "pooled",
        runs: Sequence[str] | None = None,
    ) -> None:
        """`database` is one of `current_scores.opened`; `views` are those of the model.

        Verdicts are by the `thresholds` of tonight, whatever rate earlier nights judged by.
        `runs`: ids of the runs whose regions are told as in this one; None if it looks for none.
        """
        self._database, self._out, self._model_id = database, out, model_id
        self._policy = settings.policy
        has_map = _HAS_MAP[settings.policy, settings.overlays]
        if self._policy != "none":
            has_map = f"{has_map} AND (map_uri IS NULL OR NOT {_OVERWRITTEN})"
        detector = detector_sql(views)
        names = {"key": KEY.format(detector), "detector": detector}
        self._join = _JOIN_SCORED.format(**names)
        parameters: dict[str, Any] = {"model": model_id}
        regions, found = "NULL", ""
        if runs is not None:
            parameters["runs"] = list(runs)
            regions, found = "coalesce(regions, [])", _IN_RUNS
            database.execute(_CREATE_REGIONS, parameters)
        limits = {"detector": list(thresholds), "threshold": list(thresholds.values())}
        database.register("thresholds", pa.table(limits, _THRESHOLDS))
        query = _CREATE_SCORED.format(has_map=has_map, regions=regions, found=found, **names)
        database.execute(query, parameters)
        self.copied = 0
        """Rows whose score was copied."""
        self.lost = 0
        """Rows with status `KNOWN` without a score or map to copy; they remain to be scored."""

    def contents(self) -> Contents:
        """The index of contents that have a score."""
        keys = self._database.execute("SELECT DISTINCT key FROM scored ORDER BY key")
        return Contents(keys.fetchnumpy()["key"].astype(np.uint64))

    def complete(self, rows: pa.Table) -> pa.Table:
        """Fill in the rows of status `KNOWN`, and drop those that are `lost`.

        Rows are those of `ROWS`. Maps are copied, so that each image has its own.
        """
        is_known = pc.equal(rows["status"], KNOWN)
        known = rows.filter(is_known)
        if not len(known):
            return rows
        self._database.register("known", known)
        joined = self._database.sql(self._join).to_arrow_table()
        joined = joined.drop_columns(["key", "detector"])
        self._database.unregister("known")
        completed = pa.Table.from_pylist(self._with_maps(joined.to_pylist()), ROWS)
        self.copied += len(completed)
        self.lost += len(known) - len(completed)
        return pa.concat_tables([rows.filter(pc.invert(is_known)), completed])

    def _with_maps(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(16) as pool:
            return [row for row in pool.map(self._with_map, rows) if row]

    def _with_map(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row with a copy of its map; None if the map does not exist any more."""
        needs_map = self._policy == "all" or (self._policy == "flagged" and row["is_anomalous"])
        if not needs_map:
            return row | {"map_uri": None}
        location = self._out.map(self._model_id, row["image_id"])
        try:
            png = files.read_bytes(uris.parse(row["map_uri"]).location)
        except FileNotFoundError:
            return None
        try:
            files.write_bytes(location, png)
        except StorageError as error:
            return row | {"map_uri": None, "map_error": str(error)}
        return row | {"map_uri": uris.make(location)}


@contextlib.contextmanager
def open_score_cache(
    out: Out,
    model_id: str,
    settings: ScoreSettings,
    thresholds: Mapping[str, float | None],
    views: Views = "pooled",
    regions: RegionSettings | None = None,
) -> Iterator[ScoreCache]:
    """The scores of all runs published so far; `views` are those of the model.

    `thresholds`: of tonight, by detector.
    `regions`: how regions are told tonight, with the rate filled in. Images whose regions were told
    otherwise, or are lost, are scored again. None if no regions are looked for.
    """
    runs = _runs_with_regions(out, model_id, regions) if regions else None
    with current_scores.opened(out, regions=regions is not None) as database:
        yield ScoreCache(database, out, model_id, settings, thresholds, views, runs)


def _runs_with_regions(out: Out, model_id: str, regions: RegionSettings) -> list[str]:
    """Ids of the runs under a model whose records have these settings, and whose table exists."""
    held = {files.join(out.regions(), name) for name in files.names(out.regions())}
    return [
        record["run_id"]
        for record in run_records.started(out)
        if record.get("model_id") == model_id
        and record.get("regions") == asdict(regions)
        and out.region_table(record["run_id"][:10], record["run_id"]) in held
    ]
