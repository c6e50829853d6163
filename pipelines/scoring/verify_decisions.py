"""Checks the decisions of people beside a run: tables that cannot be read lose what was decided."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from ops.errors import UserError
from ops.storage import files
from pipelines.scoring.violations import Findings, RunUnderCheck
from pipelines.tables import decisions, small_tables

_IMAGES_UNKNOWN = """
    SELECT count(*) FROM of_run ANTI JOIN rows USING (image_id)
"""


def check_decisions(
    run: RunUnderCheck, database: duckdb.DuckDBPyConnection | None, findings: Findings
) -> None:
    """Check each table of decisions of the output folder, and count them.

    Decisions may be of runs that were removed, and of scores that jobs.expire removed, so unknown
    ones are counted only. `database` has the table `rows` of `check_table`, if that was read.
    """
    with ThreadPoolExecutor(small_tables.READERS) as pool:
        tables = list(pool.map(_read, decisions.published(run.out)))
    findings.add(
        "tables of decisions can be read and keep the rules of their schema",
        [table for table in tables if isinstance(table, str)],
        "restore them from a copy, or move them away: other commands refuse to go on without them",
    )
    valid = [table for table in tables if isinstance(table, pa.Table)]
    if not valid:
        return
    decided = pa.concat_tables(valid)
    findings.decisions = len(decided)
    names = [name.removesuffix(".json") for name in files.names(run.out.runs())]
    known = pc.is_in(decided["run_id"], pa.array(names, pa.string()))
    findings.decisions_unknown = len(decided) - (pc.sum(known).as_py() or 0)
    if database is not None:
        database.register("of_run", decided.filter(pc.equal(decided["run_id"], run.run_id)))
        [(count,)] = database.sql(_IMAGES_UNKNOWN).fetchall()
        findings.decisions_unknown += count


def _read(location: str) -> pa.Table | str:
    try:
        return small_tables.read_one(decisions.TABLES, location)
    except UserError as error:
        return str(error)
