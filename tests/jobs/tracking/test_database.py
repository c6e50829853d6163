"""The local tracking database appears whole; a broken one is told with its remedy."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from jobs.tracking import database
from jobs.tracking.tracker import Tracker
from ops.errors import UserError
from ops.storage import files
from tests.conftest import ROOT

MAKE = "import sys; from jobs.tracking import database; database.make(sys.argv[1])"


def start(path):
    return subprocess.Popen([sys.executable, "-c", MAKE, path], cwd=ROOT, stderr=subprocess.DEVNULL)


def tables(path):
    connection = sqlite3.connect(path)
    try:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    finally:
        connection.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two first jobs at once, beside what a lost database left: one whole database."""
    path = str(tmp_path_factory.mktemp("out") / "mlflow.db")
    for ending in ("-journal", "-wal"):
        files.write_bytes(path + ending, b"of another database")
    both = [start(path), start(path)]
    assert [one.wait(100) for one in both] == [0, 0]
    return path


@pytest.mark.slow
def test_two_first_jobs_at_once_make_one_whole_database(whole):
    assert {"runs", "experiments", "registered_models", "alembic_version"} <= tables(whole)
    assert os.listdir(os.path.dirname(whole)) == ["mlflow.db"]
    before = files.read_bytes(whole)
    database.make(whole)
    assert files.read_bytes(whole) == before


#: Dies at a point of `make`, with a client that makes a small database.
DIE = """
import os, signal, sqlite3, sys, types
from jobs.tracking import database

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

class Client:
    def __init__(self, tracking_uri, registry_uri):
        self.path = tracking_uri.removeprefix(database.PREFIX)

    def search_experiments(self):
        connection = sqlite3.connect(self.path)
        connection.execute("CREATE TABLE half (a)")
        connection.commit()
        if sys.argv[2] == "tables":
            die()

sys.modules["mlflow"] = types.SimpleNamespace(MlflowClient=Client)
if sys.argv[2] == "write":
    database.files.create = die
if sys.argv[2] == "link":
    os.link = die
database.make(sys.argv[1])
"""


@pytest.mark.parametrize("point", ["tables", "write", "link", ""])
def test_a_job_killed_while_it_makes_the_database_leaves_none(tmp_path, point):
    path = tmp_path / "out" / "mlflow.db"
    done = subprocess.run([sys.executable, "-c", DIE, str(path), point], cwd=ROOT, check=False)
    assert done.returncode == (-signal.SIGKILL if point else 0)
    assert path.exists() == (not point)


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return str(tmp_path / "out")


@pytest.mark.slow
def test_records_kept_beside_a_broken_database_arrive_in_a_new_one(out, whole):
    path = Tracker(out).out.tracker()
    files.write_bytes(path, files.read_bytes(whole))
    connection = sqlite3.connect(path)
    for name in ("alembic_version", "trace_info"):
        connection.execute(f"DROP TABLE {name}")
    connection.commit()
    connection.close()
    with Tracker(out).run("first", {}):
        pass
    spool = Tracker(out).out.spool()
    assert len(files.names(spool)) == 1
    with pytest.raises(UserError, match=r"mlflow.db is broken: restore it from a copy, or move it"):
        Tracker(out).fetch_model("models:/a@b", out)
    os.rename(path, f"{path}.broken")
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore._engine_map.clear()  # as in the process of the next job
    with Tracker(out).run("second", {}):
        pass
    assert files.names(spool) == []
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM runs").fetchall() == [(2,)]
    connection.close()


STALE = "Detected out-of-date database schema (found version {}, but expected x). Take a backup"


@pytest.mark.parametrize(
    ("uri", "error", "told"),
    [
        ("sqlite:////out/mlflow.db", "duplicate column name: deleted_time", "/mlflow.db is broken"),
        ("sqlite:////out/mlflow.db", "database disk image is malformed", "or move it away"),
        ("sqlite:////out/mlflow.db", STALE.format("None"), "or move it away"),
        ("sqlite:////out/mlflow.db", STALE.format("f5a4f2784254"), "run mlflow db upgrade sqlite:"),
        ("sqlite:////out/mlflow.db", STALE.format("ffffffffffff"), "is of a newer MLflow: install"),
        ("sqlite:////out/mlflow.db", "attempt to write a readonly database", "let this user write"),
        ("postgresql://u:p@h/d", STALE.format("f5a4f2784254"), "run mlflow db upgrade with its"),
        ("postgresql://u:p@h/d", 'relation "runs" already exists', "is broken or half migrated"),
        ("http://tracker", "connection refused", ""),
        ("sqlite:////out/mlflow.db", "database is locked", ""),
    ],
)
def test_errors_of_databases_have_remedies(uri, error, told):
    remedy = database.remedy(uri, error)
    assert told in remedy
    assert bool(told) == bool(remedy)
    assert "u:p@" not in remedy
