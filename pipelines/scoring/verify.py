"""Checking: whether a finished run keeps its promise, from the files that it left alone."""

from __future__ import annotations

import duckdb

from ops.errors import UserError
from ops.images.inventory import Inventory
from ops.progress import ProgressCallback
from ops.storage import files, paths
from ops.storage.paths import Out
from pipelines.scoring.run import run_key
from pipelines.scoring.verify_table import check_table
from pipelines.scoring.violations import SHOWN, Findings, RunUnderCheck
from pipelines.tables.database import load, opened

#: What every record holds, from its run's start.
_RECORDED = ("run_id", "night", "images", "model_id", "settings", "input")
#: Rows, and whether the policy promises them a map.
_PROMISES = {
    "none": "CREATE VIEW promises AS SELECT *, false AS promised FROM rows",
    "all": "CREATE VIEW promises AS SELECT *, ok AS promised FROM rows",
    "flagged": "CREATE VIEW promises AS "
    "SELECT *, ok AND coalesce(flagged, false) AS promised FROM rows",
    "top": "CREATE TABLE promises AS SELECT *, ok AND $top >= "
    "row_number() OVER (ORDER BY score DESC NULLS LAST, image_id) AS promised FROM rows",
}


def check(subject: RunUnderCheck, share: float, watch: ProgressCallback) -> Findings:
    """Check a run's record, table, maps and what else it left. Memory does not grow with images.

    Of the maps a `share` is read, chosen by a hash of the images' ids; 1 reads all of them.
    """
    found = Findings()
    lacking = [name for name in _RECORDED if name not in subject.record]
    if lacking:
        found.add("the record says what was scored with what", lacking, subject.again)
        return found
    if expired := subject.record.get("expired"):
        what = f"at {expired['at']} jobs.expire left {expired['rows']} rows of it"
        found.add("the run's table is whole", [what], "check a night that was not let go")
        return found
    _check_record(subject, found)
    _check_files(subject, found)
    inventory = _inventory(subject, found)
    with opened() as database:
        # Of a table that ends early, every row that was not reached would seem to be missing.
        if check_table(subject, database, share, found, watch):
            _check_policy(subject, database, found)
            if inventory:
                _check_ids(subject, inventory, database, found)
    return found


def _check_record(subject: RunUnderCheck, found: Findings) -> None:
    record, totals = subject.record, subject.record["totals"]
    altered = f"the record was altered; {subject.again}"
    found.expect("the record is that of the run", record["run_id"], subject.run_id, altered)
    found.expect(
        "a run's name begins with its night", record["night"], record["run_id"][:10], altered
    )
    found.expect(
        "the record's totals count each of its images", totals["images"], record["images"], altered
    )
    # The record may have moved with its folder; what lies below the folder has not changed.
    tail = Out("").table(subject.run_id[:10], subject.run_id)
    if not f"/{totals['table']}".endswith(tail):
        found.add("the record names the run's table", [totals["table"]], altered)
    if subject.card:
        found.expect(
            "the model is the one on record",
            subject.card.model_id,
            record["model_id"],
            "name the model that scored the run with --model",
        )


def _check_files(subject: RunUnderCheck, found: Findings) -> None:
    folder = subject.table.rpartition("/")[0]
    there = [item.name for item in files.listing(folder)] if files.is_folder(folder) else []
    if paths.TABLE not in there:
        found.add("the run's table is there", [f"{subject.table} is gone"], subject.again)
    found.add(
        "nothing lies beside the run's table",
        [files.join(folder, name) for name in there if name != paths.TABLE],
        "remove what other tools left there; readers of scores/ take it for rows",
    )
    work = subject.out.work(subject.run_id)
    left = [item.name for item in files.listing(work)] if files.is_folder(work) else []
    found.add(
        "no parts are left of a published run",
        [files.join(work, name) for name in left],
        f"remove {work}; the next jobs.score of the same images does so too",
    )


def _inventory(subject: RunUnderCheck, found: Findings) -> Inventory | None:
    """The inventory that was scored, if it is still there and as it was."""
    try:
        inventory = Inventory(subject.inventory)
    except (OSError, UserError) as error:
        message = "name a copy of it with --inventory"
        found.add("the inventory that was scored is there", [str(error)], message)
        return None
    record = subject.record
    found.expect(
        "the run's name follows from inventory, model and settings",
        subject.run_id[11:],
        run_key(inventory, record["model_id"], record["settings"], record.get("after", ())),
        f"{subject.inventory} was taken anew since, then name a copy of the one that was scored "
        f"with --inventory; or the record was altered, then {subject.again}",
    )
    found.expect(
        "the record counts the inventory's images", record["images"], len(inventory), subject.again
    )
    return inventory


def _check_ids(
    subject: RunUnderCheck,
    inventory: Inventory,
    database: duckdb.DuckDBPyConnection,
    found: Findings,
) -> None:
    """Exactly one row per image of the inventory."""
    load(database, "listed", inventory.location, ["image_id", "uri", "product"])
    doubled = "SELECT image_id, count(*) || ' times' FROM {} GROUP BY image_id HAVING count(*) > 1"
    _report(database.sql(doubled.format("rows")), "no image has two rows", subject.again, found)
    _report(
        database.sql(doubled.format("listed")),
        "the inventory lists no image twice",
        "take the inventory again with python -m jobs.inventory, and score it",
        found,
    )
    _report(
        database.sql("SELECT image_id, uri FROM listed ANTI JOIN rows USING (image_id)"),
        "every image of the inventory has a row",
        subject.again,
        found,
    )
    _report(
        database.sql("SELECT image_id, uri FROM rows ANTI JOIN listed USING (image_id)"),
        "every row is of an image of the inventory",
        subject.again,
        found,
    )
    _report(
        database.sql(
            "SELECT rows.image_id, rows.uri, rows.product FROM rows JOIN listed USING (image_id) "
            "WHERE rows.uri <> listed.uri OR rows.product IS DISTINCT FROM listed.product"
        ),
        "rows have the address and product of the inventory",
        subject.again,
        found,
    )


def _check_policy(
    subject: RunUnderCheck, database: duckdb.DuckDBPyConnection, found: Findings
) -> None:
    """Whether just the rows have maps that the policy on record promises one."""
    policy = subject.record["settings"]["maps"]
    kind, _, top = policy.partition(":")
    database.execute(_PROMISES[kind], {"top": int(top)} if top else None)
    _report(
        database.sql("SELECT image_id, score FROM promises WHERE promised AND NOT mapped"),
        f"rows have the maps that --maps {policy} promised them",
        subject.again,
        found,
    )
    _report(
        database.sql("SELECT image_id, score FROM promises WHERE mapped AND NOT promised"),
        f"only rows have maps that --maps {policy} promised one",
        subject.again,
        found,
    )


def _report(answer: duckdb.DuckDBPyRelation, rule: str, remedy: str, found: Findings) -> None:
    if count := len(answer):
        few = answer.order("ALL").limit(SHOWN).fetchall()
        found.add(rule, [", ".join(map(str, row)) for row in few], remedy, count)
