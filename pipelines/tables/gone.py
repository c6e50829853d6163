"""Images that are gone from the archive: below its places, and not in its newest listing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import duckdb

from ops.storage import files, uris
from ops.storage.paths import Out
from pipelines.tables import run_records

#: Members of an archive that could not be listed whole may still be there.
_GONE = """
    CREATE OR REPLACE TEMP TABLE gone AS
    WITH listed AS (SELECT uri, problem FROM read_parquet($listing)),
    damaged AS (
        SELECT DISTINCT split_part(uri, '#', 1) AS container FROM listed WHERE problem IS NOT NULL
    ),
    numbers AS (SELECT DISTINCT run_id AS last_run, run_number FROM scores_of($model)),
    known AS (
        SELECT image_id, run_id, uri, split_part(uri, '#', 1) AS container
        FROM {keys} JOIN numbers USING (last_run)
        WHERE run_number <= $last_run
            AND len(list_filter($places, lambda place: starts_with(uri, place)
                AND substr(uri, len(place) + 1, 1) IN ('', '/', '#', '?'))) > 0
    )
    SELECT image_id, run_id FROM known
    ANTI JOIN listed USING (uri) ANTI JOIN damaged USING (container)
"""


class Listing(NamedTuple):
    """The newest listing of an archive by a night."""

    location: str
    """An inventory."""
    places: Sequence[str]
    """URIs of the folders, prefixes and files that were listed."""
    last_run: int
    """Number of the last run that had started; later rows may be of images that came later."""


def before_listing(out: Out, archives: Sequence[str]) -> dict[str, Any]:
    """What the record of a night keeps for `newest_listing`, once it has listed the archives."""
    places = [uris.make(place.rstrip("/") or "/").rstrip("/") for place in archives]
    numbers = [int(record["number"]) for record in run_records.started(out)]
    return {"archive": places, "last_run": max(numbers, default=0)}


def newest_listing(out: Out) -> Listing | None:
    """The newest listing; None if no night listed an archive, or its inventory was removed."""
    for record in run_records.nights(out):
        if record.get("archive"):
            if not files.exists(out.warehouse()):
                return None
            return Listing(out.warehouse(), record["archive"], record["last_run"])
    return None


def create(
    database: duckdb.DuckDBPyConnection,
    model_id: str,
    listing: Listing | None,
    keys: str = "current_keys($model)",
) -> None:
    """Create the table `gone` of `image_id` and `run_id` of current rows; empty without a listing.

    `database` is one of `current_scores.opened`, with the listing among its `others`. `keys` names
    the rows of `current_keys`, if they were found before.
    """
    if listing is None:
        database.execute("CREATE OR REPLACE TEMP TABLE gone (image_id VARCHAR, run_id VARCHAR)")
        return
    values = {"places": list(listing.places), "last_run": listing.last_run}
    database.execute(
        _GONE.format(keys=keys), values | {"model": model_id, "listing": listing.location}
    )


def count(database: duckdb.DuckDBPyConnection) -> int:
    """The number of rows of the table `gone`."""
    [(rows,)] = database.sql("SELECT count(*) FROM gone").fetchall()
    return int(rows)
