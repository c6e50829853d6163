"""The end of a run: the maps of the highest scores, and publishing its table as one file."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.errors import RunError
from ops.results import region_table, score_table
from ops.storage import files, parquet
from pipelines.cluster.isolate import process_missing
from pipelines.scoring.chunks import Chunks, InvalidRun
from pipelines.scoring.read_stage import INVENTORY_ROW, span_blocks
from pipelines.scoring.run import Run
from pipelines.scoring.stream import ScoringStream, draw_step


class MapsMissing(RunError):
    """Maps could not be written, so the run is not finished."""

    def __init__(self, count: int, error: str) -> None:
        super().__init__(
            f"{count} maps could not be written, the first because of: {error}. The rows scored so "
            "far are kept, and no table is published: mend the place of the maps and start the "
            "same command again, which scores the images without a map once more"
        )


def top_maps(run: Run, stream: ScoringStream, chunks: Chunks) -> dict[str, str]:
    """Draw the maps of the K highest scores, by scoring these images again; image_id -> map URI.

    Raises MapsMissing.
    """
    missing = set(_top_rows(run, chunks))
    draw = draw_step(run.model, run.out, "all", run.settings.overlays, thresholds=run.thresholds)

    def missing_blocks() -> list[pa.Table]:
        return span_blocks([(row, row + 1) for row in sorted(missing)], 1)

    maps: dict[str, str] = {}
    errors: list[str] = []
    for rows in process_missing(replace(stream, draw=draw), missing_blocks):
        missing.difference_update(rows[INVENTORY_ROW].to_pylist())
        uris = zip(rows["image_id"].to_pylist(), rows["map_uri"].to_pylist(), strict=True)
        maps.update((image_id, uri) for image_id, uri in uris if uri)
        errors += rows["map_error"].drop_null().to_pylist()
    if errors:
        raise MapsMissing(len(errors), errors[0])
    return maps


def _top_rows(run: Run, chunks: Chunks) -> list[int]:
    """The inventory rows of the K highest scores; of equal scores, those of the smallest ids."""
    ids = np.empty(0, dtype=object)
    scores = np.empty(0)
    numbers = np.empty(0, dtype=np.int64)
    start = 0
    for rows in chunks.tables():
        ids = np.append(ids, rows["image_id"].to_numpy())
        scores = np.append(scores, rows["score"].fill_null(-np.inf).to_numpy())
        numbers = np.append(numbers, np.arange(start, start + len(rows)))
        start += len(rows)
        best = np.lexsort((ids, -scores))[: run.settings.top]
        best = best[np.isfinite(scores[best])]
        ids, scores, numbers = ids[best], scores[best], numbers[best]
    top: list[int] = numbers.tolist()
    return top


def group_rows(chunk_rows: int) -> int:
    """The maximal number of rows in a row group of the published table."""
    return max(chunk_rows, 4096)


def publish(run: Run, chunks: Chunks, maps: dict[str, str] | None) -> int:
    """Merge all chunks into the run's one table, checked, which appears whole; returns its rows.

    The table of its regions appears before, so that no published row lacks its regions. Until the
    scores are there it belongs to no published run, and readers, which join both, pass it over.
    `maps` replaces the `map_uri` of all rows, by image_id. Raises InvalidRun.
    """
    regions = map(region_table.unnested, chunks.tables())
    parquet.write(run.out.region_table(run.night, run.run_id), region_table.SCHEMA, regions)

    def checked() -> Iterator[pa.Table]:
        for chunk in chunks.tables():
            rows = _with_number(chunk if maps is None else _with_maps(chunk, maps), run.number)
            _check_maps(run, rows)
            yield rows

    location = run.out.table(run.night, run.run_id)
    written = parquet.write(
        location, score_table.SCHEMA, checked(), group_rows(run.settings.chunk_rows)
    )
    if written != len(run.inventory):
        raise InvalidRun(f"{written} rows for {len(run.inventory)} images")
    return written


def _with_number(rows: pa.Table, number: int) -> pa.Table:
    """Rows with the run's number: an attempt whose record was lost had another."""
    column = rows.schema.get_field_index("run_number")
    numbers = pa.array([number] * len(rows), pa.int64())
    return rows.set_column(column, rows.schema.field(column), numbers)


def _with_maps(rows: pa.Table, maps: dict[str, str]) -> pa.Table:
    uris = [maps.get(image_id) for image_id in rows["image_id"].to_pylist()]
    column = rows.schema.get_field_index("map_uri")
    return rows.set_column(column, "map_uri", pa.array(uris, pa.string()))


def _check_maps(run: Run, rows: pa.Table) -> None:
    """Check that every map that the rows name exists. Raises InvalidRun."""
    with_map = rows.filter(pc.is_valid(rows["map_uri"]))["image_id"].to_pylist()
    model_id = run.model.card.model_id
    with ThreadPoolExecutor(16) as pool:
        exists = list(pool.map(lambda name: files.exists(run.out.map(model_id, name)), with_map))
    if missing := exists.count(False):
        raise InvalidRun(f"{missing} maps of {run.run_id} were drawn, but do not exist any more")
