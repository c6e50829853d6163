"""The end of a run: the maps of the highest scores, and the table that appears whole."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.results import score_table
from ops.storage import files, parquet
from pipelines.scoring.chunks import BrokenRun, Chunks
from pipelines.scoring.read_stage import slices
from pipelines.scoring.run import Run
from pipelines.scoring.stream import Chain, batches, drawing


def top_maps(run: Run, chain: Chain, chunks: Chunks) -> dict[str, str]:
    """Draw the maps of the K highest scores, by scoring these images again; id -> map."""
    ids = np.empty(0, dtype=object)
    values = np.empty(0)
    places = np.empty(0, dtype=np.int64)
    offset = 0
    for rows in chunks.tables():
        ids = np.append(ids, rows["image_id"].to_numpy())
        values = np.append(values, rows["score"].fill_null(-np.inf).to_numpy())
        places = np.append(places, np.arange(offset, offset + len(rows)))
        offset += len(rows)
        best = np.lexsort((ids, -values))[: run.settings.top]
        best = best[np.isfinite(values[best])]
        ids, values, places = ids[best], values[best], places[best]
    draw = drawing(run.model.card, run.out, "all", run.settings.overlays)
    again = Chain(chain.model, draw, chain.fetch, chain.resources)
    source = slices(run.inventory, [(int(p), int(p) + 1) for p in sorted(places)], 1)
    if source is None:
        return {}
    found: dict[str, str] = {}
    for batch in batches(again.stream(*source)):
        drawn = zip(batch["image_id"].to_pylist(), batch["map_uri"].to_pylist(), strict=True)
        found.update((name, uri) for name, uri in drawn if uri)
    return found


def group_rows(chunk_rows: int) -> int:
    """The most rows of one row group of the table."""
    return max(chunk_rows, 4096)


def publish(run: Run, chunks: Chunks, drawn: dict[str, str] | None) -> int:
    """Merge all checked parts into the run's one table, which appears whole. Returns its rows."""

    def final() -> Iterator[pa.Table]:
        for rows in chunks.tables():
            if drawn is not None:
                uris = [drawn.get(name) for name in rows["image_id"].to_pylist()]
                where = rows.schema.get_field_index("map_uri")
                yield _checked(run, rows.set_column(where, "map_uri", pa.array(uris, pa.string())))
            else:
                yield _checked(run, rows)

    location = run.out.table(run.night, run.run_id)
    written = parquet.write(
        location, score_table.SCHEMA, final(), group_rows(run.settings.chunk_rows)
    )
    if written != len(run.inventory):
        raise BrokenRun(f"{written} rows for {len(run.inventory)} images")
    return written


def _checked(run: Run, rows: pa.Table) -> pa.Table:
    """The rows, if every map that they name exists. Raises BrokenRun otherwise."""
    named = rows.filter(pc.is_valid(rows["map_uri"]))["image_id"].to_pylist()
    model_id = run.model.card.model_id
    with ThreadPoolExecutor(16) as pool:
        there = list(pool.map(lambda name: files.exists(run.out.map(model_id, name)), named))
    if not all(there):
        raise BrokenRun(f"{there.count(False)} maps of {run.run_id} were drawn, but are gone")
    return rows
