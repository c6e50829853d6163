"""What people call a model: its name, version and aliases in the registry, as runs tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import duckdb

from ops.errors import UserError
from ops.plain_text import printable
from ops.storage.paths import Out
from pipelines.tables import run_records

_SHORT = 8  # characters of an id that tell models of one output folder apart
_LISTED = 10


class NamedModel(NamedTuple):
    """A model that scored images of an output folder."""

    model_id: str
    method: str
    name: str
    """Such as `tiles v3, champion`, as the last run under it that named it; may be empty."""

    @property
    def short(self) -> str:
        """A name for a column."""
        return self.name or f"{self.method} {self.model_id[:_SHORT]}"

    def __str__(self) -> str:
        name = self.name or self.method
        return f"{name} ({self.model_id})" if name else self.model_id


def named(record: Mapping[str, Any]) -> NamedModel:
    """The model of a run, given its record."""
    words = (record.get(key) or "" for key in ("method", "model_name"))
    return NamedModel(str(record["model_id"]), *map(str, words))


def models_of(out: Out) -> list[NamedModel]:
    """The models of all runs, the one that was used last at the end."""
    models: dict[str, NamedModel] = {}
    for record in run_records.started(out):
        if "model_id" in record:
            model = named(record)
            earlier = models.pop(model.model_id, model)
            models[model.model_id] = model._replace(
                method=model.method or earlier.method, name=model.name or earlier.name
            )
    return list(models.values())


def find(out: Out, asked: str) -> NamedModel:
    """The model that a person means: by id, the start of an id, or a recorded name.

    A name is `tiles v3`, or an alias such as `champion`, which means the model that had it in the
    last run that recorded it. A complete id needs no record. Raises UserError with the models.
    """
    models = models_of(out)
    for matches in (
        [model for model in models if model.model_id == asked],
        [model for model in models if asked in _words(model.name)][-1:],
        [model for model in models if len(asked) >= 4 and model.model_id.startswith(asked)],
    ):
        if len(matches) == 1:
            return matches[0]
    if len(asked) == 32:
        return NamedModel(asked, "", "")
    known = ", ".join(map(str, models[-_LISTED:])) or "none"
    raise UserError(f"no run in {out.runs()} used a model {printable(asked)!r}; models: {known}")


def chosen(out: Out, asked: str) -> NamedModel:
    """The model that a person means, that of the latest finished run if nothing is asked.

    Raises UserError as `find` and `run_records.finished` do.
    """
    return find(out, asked) if asked else named(run_records.finished(out))


def check_has_rows(database: duckdb.DuckDBPyConnection, out: Out, model: NamedModel) -> None:
    """Raise UserError if a model has scored nothing; `database` as `current_scores` opens it."""
    has_rows = "SELECT 1 FROM scores_of($model) LIMIT 1"
    if not database.execute(has_rows, {"model": model.model_id}).fetchall():
        others = [str(each) for each in models_of(out) if each != model]
        raise UserError(
            f"model {model} has scored no image in {out.root}; models of its runs: "
            f"{', '.join(others) or 'none'}"
        )


def _words(name: str) -> list[str]:
    """What may be said for a name: all of it, its version, its aliases."""
    return [name, *name.split(", ")] if name else []
