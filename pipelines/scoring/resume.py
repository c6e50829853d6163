"""Resume a run that was killed, or start one; what makes two runs the same is `run_key`."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ops.archives.inventory import Inventory
from ops.storage import files
from ops.storage.paths import Out
from pipelines.cluster.shared_model import SharedModel
from pipelines.scoring.run import Run, ScoreSettings, check_night, run_key
from pipelines.tables import run_order, run_records


def resume_or_start(
    inventory: Inventory,
    model: SharedModel,
    out: Out,
    settings: ScoreSettings,
    night: str | None,
    after: Sequence[str] = (),
    model_name: str = "",
) -> Run:
    """A run with an id of its night and its key.

    Without `night` it resumes the latest unfinished run with the same key, or else starts one of
    today (UTC). `after` names the runs whose failures this run tries again; it distinguishes the
    run from an earlier one over the same images. `model_name` is what people call the model.
    """
    check_night(night)
    key = run_key(inventory, model.card.model_id, asdict(settings), after)
    if night is None:
        nights = sorted(_unfinished(out, key))
        night = nights[-1] if nights else datetime.datetime.now(datetime.UTC).date().isoformat()
    run_id = f"{night}-{key}"
    number = _record(out, run_id).get("number") or run_order.next_number(out)
    return Run(run_id, night, number, out, inventory, model, settings, tuple(after), model_name)


def _unfinished(out: Out, key: str) -> list[str]:
    """Nights of unfinished runs with this key.

    Removes the work folders of runs that were killed between their totals and their clean-up.
    """
    work = out.work()
    if not files.is_folder(work):
        return []
    names = {item.name.split("/", 1)[0] for item in files.listing(work)}
    nights = []
    for run_id in sorted(name for name in names if name.endswith(f"-{key}")):
        if _totals(out, run_id):
            files.remove_folder(out.work(run_id))
        else:
            nights.append(run_id[:10])
    return nights


def finished_totals(run: Run) -> dict[str, Any] | None:
    """The totals of a published run; None if it is not finished, or its table was lost since."""
    return _totals(run.out, run.run_id)


def lost_table(run: Run) -> bool:
    """Whether a run was finished once, and its table was lost since."""
    record = _record(run.out, run.run_id)
    return bool(record.get("totals")) and not run_records.has_table(run.out, record)


def _totals(out: Out, run_id: str) -> dict[str, Any] | None:
    record = _record(out, run_id)
    totals: dict[str, Any] | None = record.get("totals")
    return totals if totals and run_records.has_table(out, record) else None


def _record(out: Out, run_id: str) -> dict[str, Any]:
    """The record of a run; empty if it has none."""
    location = out.run(run_id)
    record: dict[str, Any] = files.read_json(location) if files.exists(location) else {}
    return record
