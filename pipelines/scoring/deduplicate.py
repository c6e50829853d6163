"""Images whose bytes were scored before under another name: told by hash, and not scored again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.images.content_index import KEY, Contents
from ops.images.read_images import KNOWN
from ops.storage import files, uris
from ops.storage.paths import Out
from pipelines.scoring.chunks import ROWS
from pipelines.scoring.run import ScoreSettings
from pipelines.tables import current_scores

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
_SCORED = f"""
    CREATE TEMP TABLE scored AS
    SELECT {KEY} AS key, content_sha256, product, {", ".join(_COPIED)}
    FROM scores_of($model) WHERE status = 'ok' AND {{has_its_map}} ORDER BY key
"""  # noqa: S608 - names of ours
_FOUND = f"""
    SELECT met.* REPLACE ('ok' AS status, {", ".join(f"scored.{c} AS {c}" for c in _COPIED)})
    FROM (SELECT *, {KEY} AS key FROM met) AS met JOIN scored
        ON met.key = scored.key AND met.content_sha256 = scored.content_sha256
        AND met.product = scored.product
    QUALIFY row_number() OVER (PARTITION BY met.position) = 1
"""  # noqa: S608 - likewise
#: Which earlier rows have the map that a new row would get. An overlay needs the picture, so
#: images that would get one are scored again.
_HAS_ITS_MAP = {
    ("none", False): "true",
    ("none", True): "true",
    ("flagged", False): "(NOT is_anomalous OR map_uri IS NOT NULL)",
    ("flagged", True): "NOT is_anomalous",
    ("all", False): "map_uri IS NOT NULL",
    ("all", True): "false",
}


class ScoreCache:
    """What earlier nights found for contents, under one model."""

    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        out: Out,
        model_id: str,
        settings: ScoreSettings,
    ) -> None:
        """`database` is one of `history.opened`."""
        self._database, self._out, self._model_id = database, out, model_id
        self._policy = settings.policy
        question = _SCORED.format(has_its_map=_HAS_ITS_MAP[settings.policy, settings.overlays])
        database.execute(question, {"model": model_id})
        self.copied = 0
        self.lost = 0
        """Rows that seemed known, but whose score or map was not to be had: to be scored."""

    def contents(self) -> Contents:
        """What is known."""
        found = self._database.execute("SELECT DISTINCT key FROM scored ORDER BY key")
        return Contents(found.fetchnumpy()["key"].astype(np.uint64))

    def completed(self, rows: pa.Table) -> pa.Table:
        """Rows of `ROWS` in which those of status `KNOWN` have become scores; `lost` are left out.

        Their maps are copied, so that each image has its own.
        """
        is_known = pc.equal(rows["status"], KNOWN)
        known = rows.filter(is_known)
        if not len(known):
            return rows
        self._database.register("met", known)
        found = self._database.sql(_FOUND).to_arrow_table().drop_columns(["key"])
        self._database.unregister("met")
        found = pa.Table.from_pylist(self._with_maps(found.to_pylist()), ROWS)
        self.copied += len(found)
        self.lost += len(known) - len(found)
        return pa.concat_tables([rows.filter(pc.invert(is_known)), found])

    def _with_maps(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(16) as pool:
            return [row for row in pool.map(self._with_map, rows) if row]

    def _with_map(self, row: dict[str, Any]) -> dict[str, Any] | None:
        wanted = self._policy == "all" or (self._policy == "flagged" and row["is_anomalous"])
        if not wanted:
            return row | {"map_uri": None}
        location = self._out.map(self._model_id, row["image_id"])
        try:
            png = files.read_bytes(uris.parse(row["map_uri"]).location)
        except FileNotFoundError:
            return None
        files.write_bytes(location, png)
        return row | {"map_uri": uris.make(location)}


@contextlib.contextmanager
def known(out: Out, model_id: str, settings: ScoreSettings) -> Iterator[ScoreCache]:
    """What the nights published so far know of contents."""
    with current_scores.opened(out) as database:
        yield ScoreCache(database, out, model_id, settings)
