"""The records of an output folder: of its runs, and of its nights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ops.errors import UserError
from ops.storage import files
from ops.storage.paths import Out
from ops.storage.storage_errors import NotFound


def finished(out: Out, run_id: str = "") -> dict[str, Any]:
    """The record of a finished run; without an id, of the one that started last.

    Raises NotFound if there is no such run, UserError if it is not finished.
    """
    if not run_id:
        return latest(out, 1)[0]
    if not files.exists(out.run(run_id)):
        raise NotFound(f"{out.root} holds no run {run_id}; its runs lie in {out.runs()}")
    record: dict[str, Any] = files.read_json(out.run(run_id))
    if not record.get("totals"):
        raise UserError(f"run {run_id} is not finished; start its jobs.score command again")
    return record


def latest(out: Out, count: int) -> list[dict[str, Any]]:
    """Records of the finished runs that started last, the latest at the end.

    Raises NotFound if there are fewer.
    """
    records = _finished(out)
    if len(records) < count:
        runs = f"{len(records)} finished run, but {count} are needed"
        raise NotFound(
            f"{out.root} holds {runs if records else 'no finished run'}; python -m jobs.score "
            "makes one"
        )
    return records[-count:]


def of_night(out: Out, night: str) -> list[dict[str, Any]]:
    """Records of the finished runs of a night under the model that it used last.

    The latest is at the end. Raises NotFound if there is none.
    """
    records = [record for record in _finished(out) if record["night"] == night]
    if not records:
        raise NotFound(f"{out.root} holds no finished run of the night {night}")
    return [record for record in records if record["model_id"] == records[-1]["model_id"]]


def started_after(out: Out, record: Mapping[str, Any]) -> list[str]:
    """Ids of the finished runs that started after the given one."""
    start = str(record["started"])
    return [str(other["run_id"]) for other in _finished(out) if str(other["started"]) > start]


def _finished(out: Out) -> list[dict[str, Any]]:
    """Records of all finished runs, the latest at the end."""
    records = [files.read_json(files.join(out.runs(), name)) for name in files.names(out.runs())]
    return sorted((r for r in records if r.get("totals")), key=lambda r: str(r["started"]))


def check_not_expired(record: Mapping[str, Any]) -> None:
    """Raise UserError if jobs.expire removed rows of a run: the rest is not a fair sample."""
    if expired := record.get("expired"):
        raise UserError(
            f"jobs.expire removed rows of run {record['run_id']} at {expired['at']}: only the "
            f"{expired['rows']} rows remain that no later night replaced. Choose a run with all "
            "its rows"
        )


def last_night(out: Out) -> dict[str, Any]:
    """The record of the night that started last; empty if there is none."""
    names = files.names(out.nights())
    record: dict[str, Any] = files.read_json(files.join(out.nights(), names[-1])) if names else {}
    return record
