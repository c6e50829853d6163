"""The SQL files for other engines, and the statements that add partitions."""

from __future__ import annotations

import importlib.util

import pytest

from ops.results import decision_table, region_table, score_table
from ops.storage import files
from ops.storage.paths import Out
from tests.conftest import ROOT

PLACE = ROOT / "deploy" / "sql"


def code(engine: str) -> str:
    text = (PLACE / f"{engine}.sql").read_text()
    return "\n".join(line for line in text.splitlines() if not line.startswith("--"))


def test_both_engines_have_the_same_views():
    athena, trino = (
        [view.split(";")[0] for view in code(name).split("CREATE OR REPLACE VIEW")[1:]]
        for name in ("athena", "trino")
    )
    assert len(athena) == 6
    assert athena == trino


def test_trino_takes_every_statement():
    sqlglot = pytest.importorskip("sqlglot")
    statements = [one for one in sqlglot.parse(code("trino"), dialect="trino") if one]
    created = [one for one in statements if isinstance(one, sqlglot.exp.Create)]
    kinds = ["TABLE", "VIEW", "TABLE", "VIEW", "VIEW", "TABLE", "VIEW", "VIEW", "VIEW"]
    assert [one.kind for one in created] == kinds
    assert len(statements) - len(created) == 2  # sync_partition_metadata
    partitions = ["night", "run"]
    for table, schema, more in (
        (created[0], score_table.SCHEMA, partitions),
        (created[2], region_table.SCHEMA, partitions),
        (created[5], decision_table.SCHEMA, []),
    ):
        names = [column.name for column in table.find_all(sqlglot.exp.ColumnDef)]
        assert names == [*schema.names, *more]
        assert not table.find(sqlglot.exp.Command)
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
        f"ALTER TABLE {table} ADD IF NOT EXISTS PARTITION (night = '{run[:10]}', run = '{run}') "
        f"LOCATION '{tmp_path}/{table}/night={run[:10]}/run={run}/';"
        for table in ("scores", "regions")
        for run in ("2026-11-20-1a", "2026-11-21-2b")
    ]
