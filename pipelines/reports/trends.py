"""The page about all nights: one HTML file without a script, which loads nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports import trend_drawing
from pipelines.reports.report import count, environment, inline, number, percent
from pipelines.reports.report_queries import Row
from pipelines.reports.run_summary import QUANTILES
from pipelines.reports.trend_data import (
    MARKED_DRIFT,
    Decided,
    TrendData,
    TrendRun,
    TrendSettings,
    collect,
)
from pipelines.reports.trend_drawing import HEIGHT, Chart

_NOTHING = Decided()


class ProductTrend(NamedTuple):
    """The charts of one product, and the rows of their table."""

    overview: Row
    charts: list[Chart]
    rows: list[tuple[TrendRun, Row, Decided]]
    """The newest first."""


def write(out: Out, settings: TrendSettings) -> str:
    """Write the page over the runs of an output folder; returns its location."""
    location = out.trends()
    files.write_bytes(location, render(collect(out, settings)))
    return location


def render(data: TrendData) -> bytes:
    """The page, whose links are relative to the folder of reports."""
    templates = environment()
    templates.filters["page"] = lambda run_id: quote(f"{run_id}.html")
    html = templates.get_template("trends.html.j2").render(
        data=data,
        charts=overall(data.runs) if data.runs else [],
        products=[_product(data, row) for row in data.overview[: len(data.series)]],
        anchors={product: number for number, product in enumerate(data.series, 1)},
        changes=trend_drawing.model_changes(data.runs),
        quantiles=list(QUANTILES),
        height=HEIGHT,
        marked_drift=MARKED_DRIFT,
        style=inline("report.css", "trends.css"),
    )
    return html.encode()


def overall(runs: Sequence[TrendRun]) -> list[Chart]:
    """The charts of all products together."""
    images: list[float | None] = [run.images for run in runs]
    speed = [run.images_per_second for run in runs]
    charts = [trend_drawing.line_chart("Images", images, number)]
    if any(value is not None for value in speed):
        charts.append(
            trend_drawing.line_chart("Images per second", speed, lambda each: number(each, 3))
        )
    scored = [(run.anomalous, run.images - run.failed) for run in runs]
    failed = [(run.failed, run.images) for run in runs]
    return [*charts, _share("Anomalous", "anomalous", scored), _share("Failed", "failed", failed)]


def share(part: int, whole: int) -> float | None:
    """A share of images; None if there are none."""
    return part / whole if whole else None


def _share(
    title: str, kind: str, counts: Sequence[tuple[int, int]], promised: Sequence[float | None] = ()
) -> Chart:
    shares = [share(*pair) for pair in counts]
    return trend_drawing.share_chart(title, kind, shares, percent, promised)


def _product(data: TrendData, overview: Row) -> ProductTrend:
    product = overview["product"]
    rows: Mapping[str, Row] = data.series[product]
    decided = [data.decided.get((product, run.run_id), _NOTHING) for run in data.runs]
    charts = [trend_drawing.scores_chart(data.runs, rows, number), *_shares(data.runs, rows)]
    drift = [rows[run.run_id]["psi"] if run.run_id in rows else None for run in data.runs]
    if any(value is not None for value in drift):
        charts.append(
            trend_drawing.line_chart("Drift (PSI)", drift, lambda value: number(value, 3))
        )
    if any(map(any, decided)):
        charts.append(trend_drawing.decisions_chart(decided, count))
    table = [
        (run, rows[run.run_id], each)
        for run, each in zip(data.runs, decided, strict=True)
        if run.run_id in rows
    ]
    return ProductTrend(overview, charts, table[::-1])


def _shares(runs: Sequence[TrendRun], rows: Mapping[str, Row]) -> list[Chart]:
    """Charts of anomalous and, if there are any, of failed images of a product."""
    nothing: dict[str, Any] = {"images": 0, "failed": 0, "anomalous": 0, "promised": None}
    each = [rows.get(run.run_id, nothing) for run in runs]
    scored = [(row["anomalous"], row["images"] - row["failed"]) for row in each]
    charts = [_share("Anomalous", "anomalous", scored, [row["promised"] for row in each])]
    if any(row["failed"] for row in each):
        charts.append(_share("Failed", "failed", [(row["failed"], row["images"]) for row in each]))
    return charts
