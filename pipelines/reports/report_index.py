"""The page that lists all nights and their reports, the last one first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports.report import environment, inline
from pipelines.tables import run_records
from pipelines.tables.model_names import named

_NIGHT = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class NightRow(NamedTuple):
    """A night in the list."""

    night: str
    model: str
    images: int | None
    """None if it published nothing; so are the other counts."""
    anomalous: int | None
    failed: int | None
    warnings: int
    note: str
    """Why it published nothing; empty if it did."""
    report: str
    """The link to its report; empty if there is none."""


def write(out: Out) -> str:
    """Write the page; returns its location."""
    location = out.index()
    files.write_bytes(location, render(out))
    return location


def render(out: Out) -> bytes:
    """The page, whose links are relative to the folder of reports."""
    pages = set(files.names(out.reports()))
    of_dates = [name for name in pages if _NIGHT.fullmatch(name.removesuffix(".html"))]
    html = (
        environment()
        .get_template("report_index.html.j2")
        .render(
            rows=list(nights(out, pages)),
            dates=[(name.removesuffix(".html"), quote(name)) for name in sorted(of_dates)[::-1]],
            has_trends=out.trends().rpartition("/")[2] in pages,
            style=inline("report.css"),
        )
    )
    return html.encode()


def nights(out: Out, pages: set[str]) -> Iterator[NightRow]:
    """All nights and all other finished runs, the last one first.

    `pages` are the names of the pages that exist. Runs are ordered by their numbers; a night
    without a run follows the one that was started before it.
    """
    runs = {str(record["run_id"]): record for record in run_records.with_totals(out)}
    order: list[tuple[int, NightRow]] = []
    last = 0
    for night in run_records.all_nights(out):
        run = runs.pop(str(night.get("run_id")), None)
        if run:
            last = int(run["number"])
            order.append((last, _published(run, pages)))
        else:
            order.append((last, _empty(night)))
    order += [(int(run["number"]), _published(run, pages)) for run in runs.values()]
    order.sort(key=lambda each: each[0])  # which keeps nights of one number in their order
    for _, row in reversed(order):
        yield row


def _published(run: dict[str, Any], pages: set[str]) -> NightRow:
    totals, page = run["totals"], f"{run['run_id']}.html"
    return NightRow(
        night=str(run["night"]),
        model=named(run).short,
        images=totals["images"],
        anomalous=totals["anomalous"],
        failed=totals["failed"],
        warnings=len(run.get("warnings", ())),
        note="",
        report=quote(page) if page in pages else "",
    )


def _empty(night: dict[str, Any]) -> NightRow:
    if "error" in night:
        note = f"failed: {night['error']}"
    else:
        note = "no image was pending" if "ended" in night else "not finished"
    return NightRow(
        night=str(night.get("night") or night["started"][:10]),
        model=str(night.get("model_name") or night.get("model_id", "")[:8]),
        images=None,
        anomalous=None,
        failed=None,
        warnings=len(night.get("warnings", ())),
        note=note,
        report="",
    )
