"""The records of an output folder: of its runs, and of its nights."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ops.archives.layouts import composed
from ops.errors import UserError
from ops.storage import files, parquet
from ops.storage.paths import Out
from ops.storage.storage_errors import NotFound, StorageError

log = logging.getLogger(__name__)

#: Names of records: no hidden files, copies of editors, or files in folders.
_RECORD = re.compile(r"[^./#~][^/]*\.json")


def recorded(out: Out, run_id: str = "") -> dict[str, Any]:
    """The record of a run with totals, whether or not its table is still there.

    Without an id, of the one that started last. Raises NotFound if there is no such run, UserError
    if it is not finished.
    """
    if not run_id:
        return _records(out, 1, with_totals(out))[0]
    if not files.exists(out.run(run_id)):
        raise NotFound(f"{out.root} holds no run {run_id}; its runs lie in {out.runs()}")
    record = _read(out.run(run_id))
    if not record.get("totals"):
        raise UserError(f"run {run_id} is not finished; start its jobs.score command again")
    return record


def finished(out: Out, run_id: str = "") -> dict[str, Any]:
    """The record of a finished run; without an id, of the one that started last.

    Raises NotFound if there is no such run, UserError if it is not finished or lost its table.
    """
    if not run_id:
        return latest(out, 1)[0]
    record = recorded(out, run_id)
    if not has_table(out, record) and not has_table(out, record := recorded(out, run_id)):
        raise UserError(
            f"the table of run {run_id} is lost or damaged ({_table(out, record)}): restore it, or "
            "start its jobs.score or jobs.nightly command again, which scores its images again"
        )
    return record


def has_table(out: Out, record: Mapping[str, Any]) -> bool:
    """Whether the table of a run is there with all the rows that its record counts.

    A run whose rows jobs.expire removed needs no table. It marks the record before the table.
    """
    most = record["totals"]["images"]
    least = record["expired"]["rows"] if "expired" in record else most
    if not least:
        return True
    try:
        with parquet.opened(_table(out, record)) as table:
            return bool(least <= table.metadata.num_rows <= most)
    except NotFound:
        return False
    except StorageError:  # says nothing about the table
        raise
    except UserError:
        return False


def _table(out: Out, record: Mapping[str, Any]) -> str:
    run_id = str(record["run_id"])
    return out.table(run_id[:10], run_id)


def latest(out: Out, count: int) -> list[dict[str, Any]]:
    """Records of the finished runs that started last, the latest at the end.

    Raises NotFound if there are fewer.
    """
    return _records(out, count, _finished(out))


def _records(out: Out, count: int, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
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


def of_model(out: Out, model_id: str, *names: str) -> dict[str, Any] | None:
    """The newest record of a run under a model that has these entries; None if there is none."""
    of_runs = (record for record in reversed(started(out)) if record.get("model_id") == model_id)
    return next((record for record in of_runs if set(names) <= record.keys()), None)


def held_out(record: Mapping[str, Any]) -> dict[str, int]:
    """The number of held-out parts, and images of no part, of each detector of a run's model.

    Empty if it is not recorded.
    """
    return {composed(name): count for name, count in record.get("held_out", {}).items()}


def started_after(out: Out, record: Mapping[str, Any]) -> list[str]:
    """Ids of the finished runs that started after the given one."""
    number = record["number"]
    return [str(other["run_id"]) for other in _finished(out) if other["number"] > number]


def _finished(out: Out) -> list[dict[str, Any]]:
    """Records of all finished runs, the latest at the end; those without their table are named."""
    held = {files.join(out.scores(), name) for name in files.names(out.scores())}
    records = []
    for record in with_totals(out):
        if _table(out, record) in held or "expired" in record:
            records.append(record)
        else:
            log.warning(
                "run %s is left out: its table %s is lost. Restore it, or start its command again",
                record["run_id"],
                _table(out, record),
            )
    return records


def with_totals(out: Out) -> list[dict[str, Any]]:
    """Records of all runs with totals, the latest at the end."""
    return [record for record in started(out) if record.get("totals")]


def started(out: Out) -> list[dict[str, Any]]:
    """Records of all runs, finished or not, in the order in which they started.

    Files of other names are left alone. Raises UserError that names a file which is no record.
    """
    locations = [files.join(out.runs(), name) for name in _names(out.runs())]
    with ThreadPoolExecutor(16) as pool:
        records = list(pool.map(_read, locations))
    return sorted(records, key=lambda record: int(record["number"]))


def _names(place: str) -> list[str]:
    """Files that may be records: not those of systems and editors, and not in folders."""
    return [name for name in files.names(place) if _RECORD.fullmatch(name)]


def _read(location: str) -> dict[str, Any]:
    record = files.read_json(location)
    run_id = location.rpartition("/")[2].removesuffix(".json")
    wrong = ""
    if not isinstance(record, dict) or not {"run_id", "number", "started"} <= set(record):
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


@contextlib.contextmanager
def unexpired(out: Out, *records: Mapping[str, Any]) -> Iterator[None]:
    """Read tables and maps of runs in this context.

    Raises UserError as `check_not_expired` does, also if jobs.expire begins to remove rows.
    """

    def check_now() -> None:
        for record in records:
            if files.exists(out.run(record["run_id"])):
                check_not_expired(_read(out.run(record["run_id"])))

    for record in records:
        check_not_expired(record)
    try:
        yield
    except Exception:
        check_now()
        raise
    check_now()


def last_night(out: Out) -> dict[str, Any]:
    """The record of the night that started last; empty if there is none.

    Nights that failed before they began to score are passed over: what an earlier one left
    unfinished is still to be finished.
    """
    for record in nights(out):
        if "error" not in record or "run_id" in record:
            return record
    return {}


def nights(out: Out) -> Iterator[dict[str, Any]]:
    """The records of all nights, the last one first."""
    for name in reversed(_names(out.nights())):
        yield _night(files.join(out.nights(), name))


def all_nights(out: Out) -> list[dict[str, Any]]:
    """The records of all nights, the first one first; read in parallel."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(_night, (files.join(out.nights(), n) for n in _names(out.nights()))))


def _night(location: str) -> dict[str, Any]:
    record: Any = files.read_json(location)
    if not isinstance(record, dict):
        raise UserError(
            f"{location} is not the record of a night; restore it from a backup, or move it away"
        )
    return dict(record)
