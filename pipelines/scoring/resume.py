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


def resume_or_start(
    inventory: Inventory,
    model: SharedModel,
    out: Out,
    settings: ScoreSettings,
    night: str | None,
    after: Sequence[str] = (),
) -> Run:
    """A run with an id of its night and its key.

    Without `night` it resumes the latest unfinished run with the same key, or else starts one of
    today (UTC). `after` names the runs whose failures this run tries again; it distinguishes the
    run from an earlier one over the same images.
    """
    check_night(night)
    key = run_key(inventory, model.card.model_id, asdict(settings), after)
    if night is None:
        nights = sorted(_unfinished(out, key))
        night = nights[-1] if nights else datetime.datetime.now(datetime.UTC).date().isoformat()
    return Run(f"{night}-{key}", night, out, inventory, model, settings, tuple(after))


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
    """The totals of a published run; None if it is not finished."""
    return _totals(run.out, run.run_id)


def _totals(out: Out, run_id: str) -> dict[str, Any] | None:
    location = out.run(run_id)
    if not files.exists(location):
        return None
    totals: dict[str, Any] | None = files.read_json(location).get("totals")
    return totals
