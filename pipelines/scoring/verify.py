"""Checks a finished run by its files alone: one valid row for each image of the inventory."""

from __future__ import annotations

from dataclasses import replace

import duckdb

from ops.archives.inventory import Inventory
from ops.detectors.model_card import ModelCard
from ops.errors import UserError
from ops.images.inspection_files import read_masks
from ops.progress import ProgressCallback
from ops.storage import files, paths
from ops.storage.paths import Out
from pipelines.scoring.run import run_key
from pipelines.scoring.verify_decisions import check_decisions
from pipelines.scoring.verify_images import check_images
from pipelines.scoring.verify_regions import check_regions
from pipelines.scoring.verify_table import check_table
from pipelines.scoring.violations import MAX_EXAMPLES, Findings, RunUnderCheck
from pipelines.tables.database import load, opened

#: Fields that every record has from the start of its run.
_REQUIRED_FIELDS = ("run_id", "night", "images", "model_id", "settings", "input")
#: Rows, and whether they must have a map, by the policy's kind.
_EXPECTED_MAPS = {
    "none": "CREATE VIEW expected_maps AS SELECT *, false AS expected FROM rows",
    "all": "CREATE VIEW expected_maps AS SELECT *, ok AS expected FROM rows",
    "flagged": "CREATE VIEW expected_maps AS "
    "SELECT *, ok AND coalesce(flagged, false) AS expected FROM rows",
    "top": "CREATE TABLE expected_maps AS SELECT *, ok AND $top >= "
    "row_number() OVER (ORDER BY score DESC NULLS LAST, image_id) AS expected FROM rows",
}


def check(
    run: RunUnderCheck,
    map_sample: float,
    progress: ProgressCallback,
    content_sample: float | None = None,
) -> Findings:
    """Check a run's record, table, maps and other files. Memory does not grow with the images.

    `map_sample` is the share of maps that are read, chosen by a hash of image ids; 1 reads all.
    With a `content_sample`, files of the archive are checked too: see `check_images`. If
    jobs.expire begins to remove rows of the run meanwhile, that is the only finding.
    """
    findings = _check(run, map_sample, progress, content_sample)
    location = run.out.run(run.run_id)
    now = files.read_json(location) if findings.violations and files.exists(location) else {}
    if "expired" in now and "expired" not in run.record:
        return _check(replace(run, record=now), map_sample, progress, content_sample)
    return findings


def _check(
    run: RunUnderCheck, map_sample: float, progress: ProgressCallback, content_sample: float | None
) -> Findings:
    findings = Findings()
    missing = [name for name in _REQUIRED_FIELDS if name not in run.record]
    if missing:
        findings.add("the record has all required fields", missing, run.remedy)
        return findings
    if expired := run.record.get("expired"):
        what = f"at {expired['at']} jobs.expire kept {expired['rows']} of its rows"
        findings.add("the run's table is complete", [what], "check a run that has not expired")
        return findings
    _check_record(run, findings)
    _check_files(run, findings)
    inventory = _inventory(run, findings)
    with opened() as database:
        # In a table that cannot be read to its end, the rows after that would count as missing.
        is_read = check_table(run, database, map_sample, findings, progress)
        if is_read:
            _check_policy(run, database, findings)
            check_regions(run, database, findings)
            if inventory:
                _check_ids(run, inventory, database, findings)
                if content_sample is not None:
                    check_images(
                        run, inventory.location, database, content_sample, findings, progress
                    )
        check_decisions(run, database if is_read else None, findings)
    return findings


def _check_record(run: RunUnderCheck, findings: Findings) -> None:
    record, totals = run.record, run.record["totals"]
    altered = f"the record was changed; {run.remedy}"
    findings.expect("the record is that of the run", record["run_id"], run.run_id, altered)
    findings.expect(
        "a run's id begins with its night", record["night"], record["run_id"][:10], altered
    )
    findings.expect(
        "the record's totals count all its images", totals["images"], record["images"], altered
    )
    # The output folder may have been moved; the path below it has not changed.
    suffix = Out("").table(run.run_id[:10], run.run_id)
    if not f"/{totals['table']}".endswith(suffix):
        findings.add("the record names the run's table", [totals["table"]], altered)
    if run.card:
        findings.expect(
            "the model is the one on record",
            run.card.model_id,
            record["model_id"],
            "name the model that scored the run with --model",
        )
        _check_parts(run, run.card, findings)
        _check_masks(run, run.card, findings)


def _check_parts(run: RunUnderCheck, card: ModelCard, findings: Findings) -> None:
    """Check the copy of the calibrations by which `jobs.query --parts` judges."""
    location = run.out.part_calibrations(card.model_id)
    if not card.parts or card.model_id != run.record["model_id"]:
        return
    stored = files.read_json(location) if files.exists(location) else None
    if stored != {name: parts.to_json() for name, parts in card.parts.items()}:
        findings.add(
            "the output folder has the model's calibrations of parts",
            [f"{location} {'does not exist' if stored is None else 'has others'}"],
            f"remove {location}; the next run with this model writes it again",
        )


def _check_masks(run: RunUnderCheck, card: ModelCard, findings: Findings) -> None:
    """Check the copies of the inspection masks by which `jobs.evaluate` counts pixels."""
    folder = run.out.inspection_masks(card.model_id)
    if card.model_id != run.record["model_id"]:
        return
    for name in card.masks:
        location = files.join(folder, paths.mask_file(name))
        if not files.exists(location):
            continue  # of a product that no run has scored
        try:
            read_masks(folder, card.masks, [name])
        except UserError as error:
            findings.add(
                "the output folder has the model's inspection masks",
                [str(error)],
                f"remove {location}; the next run with this model writes it again",
            )


def _check_files(run: RunUnderCheck, findings: Findings) -> None:
    folder = run.table.rpartition("/")[0]
    names = [item.name for item in files.listing(folder)] if files.is_folder(folder) else []
    if paths.TABLE not in names:
        findings.add("the run's table exists", [f"{run.table} does not exist"], run.remedy)
    findings.add(
        "the run's table is the only file in its folder",
        [files.join(folder, name) for name in names if name != paths.TABLE],
        "remove the files of other tools; readers of scores/ would read them as rows",
    )
    work = run.out.work(run.run_id)
    names = [item.name for item in files.listing(work)] if files.is_folder(work) else []
    findings.add(
        "a published run has no work files",
        [files.join(work, name) for name in names],
        f"remove {work}; the next jobs.score of the same images does so too",
    )


def _inventory(run: RunUnderCheck, findings: Findings) -> Inventory | None:
    """The inventory that was scored, if it can be read."""
    try:
        inventory = Inventory(run.inventory)
    except (OSError, UserError) as error:
        remedy = "name a copy of it with --inventory"
        findings.add("the inventory that was scored can be read", [str(error)], remedy)
        return None
    record = run.record
    findings.expect(
        "the run's id is a hash of inventory, model and settings",
        run.run_id[11:],
        run_key(inventory, record["model_id"], record["settings"], record.get("after", ())),
        f"if {run.inventory} was taken again since, name a copy of the one that was scored with "
        f"--inventory; if the record was changed, {run.remedy}",
    )
    findings.expect(
        "the record counts the inventory's images", record["images"], len(inventory), run.remedy
    )
    return inventory


def _check_ids(
    run: RunUnderCheck,
    inventory: Inventory,
    database: duckdb.DuckDBPyConnection,
    findings: Findings,
) -> None:
    """Check that each image of the inventory has exactly one row."""
    columns = ["image_id", "uri", "product", "part", "view", "fields"]
    load(database, "listed", inventory.location, columns)
    twice = "SELECT image_id, count(*) || ' times' FROM {} GROUP BY image_id HAVING count(*) > 1"
    _report(database.sql(twice.format("rows")), "no image has two rows", run.remedy, findings)
    _report(
        database.sql(twice.format("listed")),
        "the inventory lists no image twice",
        "take the inventory again with python -m jobs.inventory, and score it",
        findings,
    )
    _report(
        database.sql("SELECT image_id, uri FROM listed ANTI JOIN rows USING (image_id)"),
        "every image of the inventory has a row",
        run.remedy,
        findings,
    )
    _report(
        database.sql("SELECT image_id, uri FROM rows ANTI JOIN listed USING (image_id)"),
        "every row belongs to an image of the inventory",
        run.remedy,
        findings,
    )
    _report(
        database.sql(
            "SELECT rows.image_id, rows.uri, rows.product, rows.part, rows.view, rows.fields "
            "FROM rows JOIN listed USING (image_id) WHERE rows.uri <> listed.uri "
            "OR nfc_normalize(rows.product) IS DISTINCT FROM nfc_normalize(listed.product) "
            "OR nfc_normalize(rows.part) IS DISTINCT FROM nfc_normalize(listed.part) "
            "OR nfc_normalize(rows.view) IS DISTINCT FROM nfc_normalize(listed.view) "
            "OR rows.fields IS DISTINCT FROM listed.fields"
        ),
        "rows have the uri, product, part, view and fields of the inventory",
        run.remedy,
        findings,
    )


def _check_policy(
    run: RunUnderCheck, database: duckdb.DuckDBPyConnection, findings: Findings
) -> None:
    """Check that exactly those rows have maps that must have one by the recorded policy."""
    policy = run.record["settings"]["maps"]
    kind, _, top = policy.partition(":")
    database.execute(_EXPECTED_MAPS[kind], {"top": int(top)} if top else None)
    _report(
        database.sql("SELECT image_id, score FROM expected_maps WHERE expected AND NOT has_map"),
        f"rows have the maps that --maps {policy} requires",
        run.remedy,
        findings,
    )
    _report(
        database.sql("SELECT image_id, score FROM expected_maps WHERE has_map AND NOT expected"),
        f"no other rows have maps than --maps {policy} requires",
        run.remedy,
        findings,
    )


def _report(rows: duckdb.DuckDBPyRelation, rule: str, remedy: str, findings: Findings) -> None:
    """Add the rows that break a rule."""
    if count := len(rows):
        examples = rows.order("ALL").limit(MAX_EXAMPLES).fetchall()
        findings.add(rule, [", ".join(map(str, row)) for row in examples], remedy, count)
