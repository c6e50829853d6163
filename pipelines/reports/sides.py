"""The two sides of a comparison: two finished runs, or the current views of two models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import duckdb

from ops.archives.views import Views, detector_sql, views_of
from ops.storage import files, paths
from ops.storage.paths import Out
from pipelines.reports.drift import READ, SIDES
from pipelines.tables import current_scores, gone, model_names, run_records
from pipelines.tables.database import load, opened
from pipelines.tables.gone import Listing
from pipelines.tables.model_names import NamedModel

T = TypeVar("T")
_COLUMNS = (*READ, "part", "view")
_REGION = ("image_id", "box_x", "box_y", "box_width", "box_height")
_CURRENT = """
    CREATE TABLE {table} AS SELECT {columns} FROM {rows}($model)
    SEMI JOIN keys USING (image_id, run_id) ANTI JOIN gone USING (image_id, run_id)
"""
_NO_REGIONS = """
    CREATE TABLE {table} (
        image_id VARCHAR, box_x INTEGER, box_y INTEGER, box_width INTEGER, box_height INTEGER
    )
"""


class Side(NamedTuple):
    """One side of a comparison: a run, or the current view of a model."""

    name: str
    """Its name in `Out.comparisons`."""
    short: str
    """Its name in pictures."""
    title: str
    """For people: what it is, and of which model."""
    record: Mapping[str, Any]
    """The record of the run, or of the newest run under the model."""

    @property
    def model_id(self) -> str:
        """The model that scored its rows."""
        return str(self.record["model_id"])


class Sides(ABC):
    """Both sides, and the way to their rows."""

    def __init__(self, out: Out, before: Side, after: Side) -> None:
        self.out, self.before, self.after = out, before, after
        self.gone = (0, 0)
        """Numbers of images that `read` left out on each side: they are gone from the archive."""

    def __iter__(self) -> Iterator[Side]:
        return iter((self.before, self.after))

    @abstractmethod
    def read(self, compare: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """The result of `compare(database)`, whose database holds the rows of both sides.

        It has the tables `a` and `b` of images, the view `sides` of both, and the tables
        `regions_a` and `regions_b`. It spills to disk what exceeds its memory limit.
        """

    def name_detectors(self, database: duckdb.DuckDBPyConnection) -> None:
        """If both models have separate views, make each view a product of its own in the tables."""
        separate: Views = "separate"
        if all(views_of(side.record) == separate for side in self):
            for table in ("a", "b"):
                database.execute(f"UPDATE {table} SET product = {detector_sql(separate)}")  # noqa: S608


class Runs(Sides):
    """Two finished runs, given their records, of which jobs.expire removed no row."""

    def __init__(self, out: Out, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        super().__init__(out, _of_run(before), _of_run(after))

    def read(self, compare: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """As `Sides.read`. Raises UserError if jobs.expire removes rows meanwhile."""
        with opened() as database:
            with run_records.unexpired(self.out, self.before.record, self.after.record):
                self._load(database)
            return compare(database)

    def _load(self, database: duckdb.DuckDBPyConnection) -> None:
        runs = [(str(side.record["night"]), side.name) for side in self]
        regions = [self.out.region_table(*run) for run in runs]
        # A run whose table of regions was lost has none to compare.
        has_regions = all(map(files.exists, regions))
        for name, run, table in zip("ab", runs, regions, strict=True):
            load(database, name, self.out.table(*run), _COLUMNS)
            if has_regions:
                load(database, f"regions_{name}", table, _REGION)
            else:
                database.execute(_NO_REGIONS.format(table=f"regions_{name}"))
        database.execute(SIDES)


def _of_run(record: Mapping[str, Any]) -> Side:
    run_id = str(record["run_id"])
    return Side(run_id, run_id, f"run {run_id}, model {record['model_id']}", record)


class Models(Sides):
    """The current views of two models: the newest valid row of each image, over all nights.

    Images that are gone from the archive by its newest listing are left out.
    """

    def __init__(self, out: Out, before: NamedModel, after: NamedModel) -> None:
        super().__init__(out, _of_model(out, before), _of_model(out, after))
        self._models = before, after

    def read(self, compare: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """As `Sides.read`. Raises UserError if a model has no rows.

        If jobs.expire replaces tables meanwhile, `compare` is called again over those that are
        left, and raises TablesChanged if they never stay.
        """
        listing = gone.newest_listing(self.out)

        def read(database: duckdb.DuckDBPyConnection, check: Callable[[], None]) -> T:
            counts = [
                self._load(database, name, model, listing)
                for name, model in zip("ab", self._models, strict=True)
            ]
            self.gone = counts[0], counts[1]
            check()
            database.execute(SIDES)
            return compare(database)

        others = [listing.location] if listing else []
        return current_scores.read_consistently(self.out, read, "2GB", *others, regions=True)

    def _load(
        self,
        database: duckdb.DuckDBPyConnection,
        name: str,
        model: NamedModel,
        listing: Listing | None,
    ) -> int:
        """Create the tables of one side; the number of images that are gone."""
        model_names.check_has_rows(database, self.out, model)
        current_scores.find_keys(database, model.model_id)
        gone.create(database, model.model_id, listing, "keys")
        for table, rows, columns in (
            (name, "scores_of", _COLUMNS),
            (f"regions_{name}", "regions_of", _REGION),
        ):
            query = _CURRENT.format(table=table, rows=rows, columns=", ".join(columns))
            database.execute(query, {"model": model.model_id})
        return gone.count(database)


def _of_model(out: Out, model: NamedModel) -> Side:
    record = run_records.of_model(out, model.model_id) or {"model_id": model.model_id}
    return Side(paths.model_side(model.model_id), model.short, f"model {model}", record)
