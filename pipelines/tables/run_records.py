"""The records of an output folder: of its runs, and of its nights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ops.errors import UserError
from ops.storage import files
from ops.storage.paths import Out
from ops.storage.storage_errors import NotFound

#: Names of records: no hidden files, copies of editors, or files in folders.
_RECORD = re.compile(r"[^./#~][^/]*\.json")


def finished(out: Out, run_id: str = "") -> dict[str, Any]:
    """The record of a finished run; without an id, of the one that started last.

    Raises NotFound if there is no such run, UserError if it is not finished.
    """
    if not run_id:
        return latest(out, 1)[0]
    if not files.exists(out.run(run_id)):
        raise NotFound(f"{out.root} holds no run {run_id}; its runs lie in {out.runs()}")
    record = _read(out.run(run_id))
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


def every(out: Out) -> list[dict[str, Any]]:
    """Records of all runs in order of their ids; files of other names are left alone.

    Raises UserError that names a file which is no record.
    """
    return [_read(files.join(out.runs(), name)) for name in _names(out.runs())]


def _finished(out: Out) -> list[dict[str, Any]]:
    """Records of all finished runs, the latest at the end."""
    return sorted((r for r in every(out) if r.get("totals")), key=lambda r: str(r["started"]))


def _names(place: str) -> list[str]:
    """Files that may be records: not those of systems and editors, and not in folders."""
    return [name for name in files.names(place) if _RECORD.fullmatch(name)]


def _read(location: str) -> dict[str, Any]:
    record = files.read_json(location)
    run_id = location.rpartition("/")[2].removesuffix(".json")
    wrong = ""
    if not isinstance(record, dict) or not {"run_id", "started"} <= set(record):
        wrong = "it is not the record of a run"
    elif record["run_id"] != run_id:
        wrong = f"it is the record of run {record['run_id']}, under another name"
    elif not isinstance(record.get("totals") or {}, dict):
        wrong = "its totals are no table"
    if wrong:
        raise UserError(f"{location}: {wrong}; restore it from a backup, or move it away")
    return dict(record)


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
    names = _names(out.nights())
    if not names:
        return {}
    location = files.join(out.nights(), names[-1])
    record: Any = files.read_json(location)
    if not isinstance(record, dict):
        raise UserError(
            f"{location} is not the record of a night; restore it from a backup, or move it away"
        )
    return dict(record)
