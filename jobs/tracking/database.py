"""The local tracking database. It appears whole; a broken one is told with its remedy."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sqlite3
import tempfile
from pathlib import Path

from ops.storage import files

PREFIX = "sqlite:///"
#: What SQLite leaves beside a database whose writer died. It must not be applied to a new one.
_LEFT_BESIDE = ("-journal", "-wal", "-shm")
#: Words of errors of a database that MLflow did not finish, or that is none.
_BROKEN = (
    "duplicate column name",
    "no such table",
    "no such column",
    "already exists",
    "file is not a database",
    "disk image is malformed",
    "Can't locate revision",
)


def make(path: str) -> None:
    """Make the database of a tracker, unless it exists.

    MLflow takes seconds for it, in many steps, and cannot go on where another process was killed.
    So it is made elsewhere, and of several processes that make it one gives it its name.
    """
    if os.path.exists(path):
        return
    for ending in _LEFT_BESIDE:
        files.remove_file(f"{path}{ending}")
    from mlflow import MlflowClient  # noqa: PLC0415 - takes 1.5 s, so only where it is used

    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
        made, whole = (os.path.join(folder, name) for name in ("made.db", "whole.db"))
        uri = f"{PREFIX}{made}"
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments()
        with (
            contextlib.closing(sqlite3.connect(made)) as source,
            contextlib.closing(sqlite3.connect(whole)) as target,
        ):
            source.backup(target)  # also what still lies in a log beside it
        files.create(path, Path(whole).read_bytes())


def remedy(uri: str, error: str) -> str:
    """What to do about an error of a tracker's database; empty if that is not known."""
    path = uri.removeprefix(PREFIX) if uri.startswith(PREFIX) else ""
    place = path or "the tracker's database"
    if "out-of-date database schema" in error:
        found = error.partition("found version ")[2].partition(",")[0]
        if found == "None":
            return _move(place, path)
        if _is_known(found):
            address = uri if path else "with its address"
            return f"; {place} is of an older MLflow: copy it, then run mlflow db upgrade {address}"
        return f"; {place} is of a newer MLflow: install that version of MLflow"
    if any(words in error for words in _BROKEN):
        return _move(place, path)
    if path and ("readonly database" in error or "unable to open database" in error):
        return f"; let this user write {path} and its folder"
    return ""


def _is_known(revision: str) -> bool:
    """Whether the MLflow that is installed knows a revision of the schema."""
    found = importlib.util.find_spec("mlflow")  # without its import, which takes seconds
    if found is None or found.origin is None:
        return False
    versions = Path(found.origin).parent / "store" / "db_migrations" / "versions"
    return revision.isalnum() and any(versions.glob(f"{revision}_*.py"))


def _move(place: str, path: str) -> str:
    if not path:
        return f"; {place} is broken or half migrated: restore it from a copy"
    return (
        f"; {place} is broken: restore it from a copy, or move it away. The next job makes a new "
        "one and delivers what is kept; registered models must be registered again"
    )
