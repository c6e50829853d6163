"""The SQL files for other engines, and the statements that add partitions."""

from __future__ import annotations

import importlib.util

import pytest

from ops.storage import files
from ops.storage.paths import Out
from tests.conftest import ROOT

PLACE = ROOT / "deploy" / "sql"


def code(engine: str) -> str:
    text = (PLACE / f"{engine}.sql").read_text()
    return "\n".join(line for line in text.splitlines() if not line.startswith("--"))


def test_both_engines_have_the_same_views():
    athena, trino = (code(name).split("CREATE OR REPLACE VIEW")[1:] for name in ("athena", "trino"))
    assert len(athena) == 2
    assert athena == trino


def test_trino_takes_every_statement():
    sqlglot = pytest.importorskip("sqlglot")
    create, _, *views = (one for one in sqlglot.parse(code("trino"), dialect="trino") if one)
    assert [create.kind, *(view.kind for view in views)] == ["TABLE", "VIEW", "VIEW"]
    names = [column.name for column in create.find_all(sqlglot.exp.ColumnDef)]
    assert names[-2:] == ["night", "run"]
    assert not create.find(sqlglot.exp.Command)
    with pytest.raises(sqlglot.errors.ParseError):
        sqlglot.parse("CREATE TABLE scores (", dialect="trino")


@pytest.fixture
def statements():
    spec = importlib.util.spec_from_file_location("add_partitions", PLACE / "add_partitions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.statements


def test_each_published_table_becomes_a_partition(statements, tmp_path):
    out = Out(str(tmp_path))
    for day, run in (("2026-11-20", "2026-11-20-1a"), ("2026-11-21", "2026-11-21-2b")):
        files.write_bytes(out.table(day, run), b"")
    assert statements(str(tmp_path)) == [
        f"ALTER TABLE scores ADD IF NOT EXISTS PARTITION (night = '{run[:10]}', run = '{run}') "
        f"LOCATION '{tmp_path}/scores/night={run[:10]}/run={run}/';"
        for run in ("2026-11-20-1a", "2026-11-21-2b")
    ]
