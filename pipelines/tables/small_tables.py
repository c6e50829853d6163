"""Folders of many small tables, each of which is read whole and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa

from ops.errors import UserError
from ops.storage import parquet
from ops.storage.storage_errors import StorageError

#: Threads that read: there can be a table for each decision, and there is one for each run.
READERS = 16


class Kind(NamedTuple):
    """What the tables of a folder are."""

    noun: str
    """Such as "table of decisions"."""
    schema: pa.Schema
    violations: Callable[[pa.Table], list[str]]
    """The rules that a table breaks, in words."""
    without: str
    """What becomes of it if a damaged one is moved away."""


def read(kind: Kind, places: Sequence[str]) -> pa.Table:
    """The rows of tables, in their order. Raises UserError that names a damaged one."""
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda place: read_one(kind, place), places)
        return pa.concat_tables([kind.schema.empty_table(), *tables])


def read_one(kind: Kind, place: str) -> pa.Table:
    """The rows of one table. Raises UserError that names it if it is damaged."""
    try:
        table = parquet.read(place)
        wrong = kind.violations(table)
    except StorageError:  # not to be read now, which is no damage
        raise
    except (pa.ArrowException, OSError, UserError, ValueError) as error:
        wrong = [str(error)]
    if wrong:
        raise UserError(
            f"{place} is no valid {kind.noun} ({'; '.join(wrong)}); restore it from a backup, or "
            f"move it away: {kind.without}"
        )
    return table
