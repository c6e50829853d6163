"""Conditions that people write: what is an expression over columns, and what is refused."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.errors import SettingError, UserError
from ops.results import score_table
from ops.storage import files
from ops.storage.paths import Out
from pipelines.tables import condition, current_scores
from pipelines.tables.database import opened
from tests.pipelines.tables.test_current_scores import MODELS, publish, row


@pytest.fixture(scope="module")
def database():
    with opened() as database:
        yield database


@pytest.mark.parametrize(
    "text",
    [
        "width > 1000",
        "WIDTH * height >= 1e6 and not is_anomalous",
        "product like 'nut%' or reason is null",
        "product in ('a', 'b') and score between 1 and 2",
        "case when p_value < 0.1 then true else false end",
        "scored_at > now() - interval 3 day",
        "scored_at >= timestamp '2026-11-20' and scored_at::date < '2026-12-01'",
        "regexp_matches(uri, '[0-9]+') -- a comment",
        "product similar to 'a.*' /* another */",
        "coalesce(score, 0) > 1",
        "is_anomalous is distinct from true",
        "status = 'read_text(''/etc/passwd'')'",
        "cast(score as decimal(10, 2)) > 1 and try_cast(product as int) is null",
        "scored_at > '2026-11-20 10:00+01'::timestamp with time zone",
        "scored_at > timestamptz '2026-11-20' - interval '3 days'",
        "abs(score) ** 2 > 4 and lower(product) = 'ö'",
        "not " * 90 + "true",
    ],
)
def test_an_expression_over_columns_is_a_condition(database, text):
    condition.check(database, text, score_table.SCHEMA.names)
    empty = score_table.SCHEMA.empty_table()
    database.register("rows", empty)
    assert database.sql(f"FROM rows WHERE (\n{text}\n)").fetchall() == []


@pytest.mark.parametrize(
    "text",
    [
        "exists(select * from read_text('/etc/passwd') where content like 'root%')",
        "(select count(*) from read_csv('/etc/passwd')) > 0",
        "uri in (select uri from current_scores('a'))",
        "uri in (from '/etc/passwd')",
        "score > (select max(score) from rules)",
        "true) or exists(select 1",
        "true) union all (select 1",
        "true) order by (score",
        "true) --",
        "true /*",
        "true; attach '/tmp/x.db'",
        "true; copy (select 1) to '/tmp/x'",
        "true; pragma database_list",
        "1 union select 2",
        "true limit 1",
        "distinct score > 1",
        "true from read_text('/etc/passwd')",
        "true, false",
        "score > 1 as x",
        "x: score > 1",
        "read_text('/etc/passwd')",
        "getenv('HOME') = 'x'",
        "getvariable('tables') is not null",
        "current_setting('temp_directory') like '%'",
        "sleep_ms(100000) > 0",
        "write_log('x') is null",
        "nextval('x') > 1",
        "system.main.lower(product) = 'x'",
        "length(repeat('x', 1000000000)) > 1",
        "len(range(1000000000)) > 1",
        "len([x for x in [1, 2]]) > 1",
        "max(score) over () > 1",
        "max(score) > 1",
        "columns('s.*') > 1",
        "*",
        "unnest([true])",
        "product = $model",
        "product = ?",
        "rules.threshold > 1",
        "judged.score > 1",
        "nonsense > 1",
        "attach '/tmp/x.db'",
        "install httpfs",
        "pragma version",
        "",
        "  ",
        ";",
        "(" * 5000 + "true" + ")" * 5000,
        "not " * 101 + "true",
        "not " * 900 + "true",
        "true or " * 20_000 + "true",
        "cast(product as nonsense) = 1",
        "json 'true'",
    ],
)
def test_anything_else_is_refused(database, text):
    with pytest.raises(SettingError):
        condition.check(database, text, score_table.SCHEMA.names)


def test_a_condition_with_a_comment_at_its_end_is_applied(tmp_path):
    out = Out(str(tmp_path / "out"))
    publish(out, 0, [row("u/1", score=1.0), row("u/2", score=3.0)])
    found = current_scores.current(out, MODELS[0], where="score > 2 -- the worst")
    assert found["uri"].to_pylist() == ["u/2"]


def test_a_damaged_table_is_named(tmp_path):
    out = Out(str(tmp_path / "out"))
    places = [
        out.table(run[:10], run) for run in (publish(out, n, [row(f"u/{n}")]) for n in (0, 1))
    ]
    whole = files.read_bytes(places[1])
    damaged = {
        "cut short": whole[:-20],
        "empty": b"",
        "another file": b"x" * 100,
        "damaged pages": whole[:4] + b"\xff" * 300 + whole[304:],
    }
    for data in damaged.values():
        files.write_bytes(places[1], data)
        with pytest.raises(UserError, match=re.escape(places[1])):
            current_scores.current(out, MODELS[0])


@pytest.mark.parametrize("number", [0, 1])
def test_a_parquet_file_that_is_no_score_table_is_named(tmp_path, number):
    out = Out(str(tmp_path / "out"))
    places = [
        out.table(run[:10], run) for run in (publish(out, n, [row(f"u/{n}")]) for n in (0, 1))
    ]
    pq.write_table(pa.table({"uri": ["u/0"]}), places[number])
    message = rf"{re.escape(places[number])} is damaged \(it has no column bit_depth\)"
    with pytest.raises(UserError, match=message):
        current_scores.current(out, MODELS[0])
