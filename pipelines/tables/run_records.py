"""What an output folder has on record of its finished runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ops.errors import UserError
from ops.storage import files
from ops.storage.paths import Out


def finished(out: Out, run_id: str = "") -> dict[str, Any]:
    """The record of a finished run; without a name, of the one that started last.

    Raises FileNotFoundError if there is no such run, UserError if it is not finished.
    """
    if not run_id:
        return latest(out, 1)[0]
    if not files.exists(out.run(run_id)):
        raise FileNotFoundError(f"{out.root} holds no run {run_id}; its runs lie in {out.runs()}")
    record: dict[str, Any] = files.read_json(out.run(run_id))
    if not record.get("totals"):
        raise UserError(f"run {run_id} is not finished; start its jobs.score command again")
    return record


def latest(out: Out, count: int) -> list[dict[str, Any]]:
    """Records of the finished runs that started last, the latest at the end.

    Raises FileNotFoundError if there are fewer.
    """
    done = _done(out)
    if len(done) < count:
        held = f"{len(done)} finished run, but {count} are needed" if done else "no finished run"
        raise FileNotFoundError(f"{out.root} holds {held}; python -m jobs.score makes one")
    return done[-count:]


def of_night(out: Out, night: str) -> list[dict[str, Any]]:
    """Records of the finished runs of a night, the latest at the end: those with its model.

    Raises FileNotFoundError if there is none.
    """
    found = [record for record in _done(out) if record["night"] == night]
    if not found:
        raise FileNotFoundError(f"{out.root} holds no finished run of the night {night}")
    return [record for record in found if record["model_id"] == found[-1]["model_id"]]


def later(out: Out, record: Mapping[str, Any]) -> list[str]:
    """Ids of the finished runs that started after one."""
    return [str(r["run_id"]) for r in _done(out) if str(r["started"]) > str(record["started"])]


def _done(out: Out) -> list[dict[str, Any]]:
    """Records of all finished runs, the latest at the end."""
    found = [files.read_json(files.join(out.runs(), name)) for name in files.names(out.runs())]
    return sorted((r for r in found if r.get("totals")), key=lambda r: str(r["started"]))


def check_whole(record: Mapping[str, Any]) -> None:
    """Raises UserError if jobs.expire took rows of a run: what is left is no fair sample."""
    if expired := record.get("expired"):
        raise UserError(
            f"of run {record['run_id']} jobs.expire left {expired['rows']} rows at "
            f"{expired['at']}, those that no later night replaced; take a night that was not let go"
        )
