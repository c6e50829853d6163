"""The report page of a night: one HTML file that loads nothing else.

All text from tables is escaped, and control characters are shown as escape sequences. The page's
content security policy allows only its own script, and no request.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ops.archives.fetch import FetchSettings
from ops.failure import STATUSES
from ops.plain_text import printable
from ops.progress import ProgressCallback
from ops.results.decision_table import DECISIONS
from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports.alerts import has_drifted
from pipelines.reports.report_data import ReportData, ReportSettings, collect
from pipelines.reports.report_queries import BINS, Histogram

#: Maximum number of products in the table: those with the most anomalous images.
PRODUCTS = 100
_FOLDER = Path(__file__).parent
#: Size of the histograms in the units of their drawings.
_WIDTH, _HEIGHT = 8 * BINS, 72


class Bar(NamedTuple):
    """A bar of a histogram: its left and upper edge and its height."""

    x: float
    y: float
    height: float


class HistogramDrawing(NamedTuple):
    """The shapes of a histogram: bars for the night, an outline for earlier nights."""

    normal: list[Bar]
    anomalous: list[Bar]
    before: str
    """Points of the outline; empty if there are no earlier scores."""
    threshold: float | None
    """Its distance from the left; None if it lies outside of the histogram."""


def report(
    out: Out,
    runs: Sequence[Mapping[str, Any]],
    name: str,
    settings: ReportSettings,
    fetch_settings: FetchSettings,
    progress: ProgressCallback,
    tracker: str = "",
) -> str:
    """Write the page about finished runs of one night and one model; returns its location.

    `runs` are their records in order of their start, `name` is the name of the page. The settings
    and `PRODUCTS` bound its size.
    """
    location = out.report(name)
    data = collect(out, runs, settings, fetch_settings, progress, tracker)
    files.write_bytes(location, render(out, data))
    return location


def render(out: Out, data: ReportData) -> bytes:
    """The page, whose links are relative to its location below `out`."""
    rows = [*(part.row for part in data.parts), *data.flagged, *data.failed]
    html = (
        environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            last=data.runs[-1],
            meanings=STATUSES,
            words={name: name.replace("_", " ") for name in DECISIONS},
            products=data.products[:PRODUCTS],
            drawings={
                product: draw_histogram(histogram, data.thresholds.get(product or ""))
                for product, histogram in data.histograms.items()
            },
            listed_products=sorted({f"p:{row['product'] or ''}" for row in rows}),
            listed_statuses=sorted({row["status"] for row in rows}),
            tables=[_table(out, run) for run in data.runs],
            tracker=data.tracker,
            tracker_is_web=re.match(r"https?://", data.tracker) is not None,
            width=_WIDTH,
            height=_HEIGHT,
            script=inline("report.js"),
            style=inline("report.css"),
        )
    )
    return html.encode()


def environment() -> Environment:
    """The templates of pages, which escape all text."""
    templates = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,  # whatever the template's file is called
        undefined=StrictUndefined,
        finalize=_escape_control_characters,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, "count": count, "duration": duration, "name": name}
    templates.filters["percent"] = percent
    templates.globals["drifted"] = has_drifted
    templates.globals["value"] = lambda cell: "" if cell is None else cell
    return templates


class Inline(NamedTuple):
    """A script or a style in a page, and the hash by which the page's policy allows it."""

    text: Markup
    policy: str


def inline(*names: str) -> Inline:
    """Our own files, one behind the other."""
    text = "".join((_FOLDER / name).read_text("utf-8") for name in names)
    policy = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Inline(Markup(text), policy)  # noqa: S704 - our own files


def _escape_control_characters(value: Any) -> Any:
    """Text with control characters, also those for the direction of writing, as escapes."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value


def number(value: float | None, digits: int = 4) -> str:
    """A number with some significant digits, or all of its whole part; a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    whole = 10**digits <= abs(value) < 10**15
    return f"{value:,.0f}" if whole else f"{value:.{digits}g}"


def count(value: int) -> str:
    """A whole number with commas between thousands."""
    return f"{value:,}"


def percent(share: float) -> str:
    """A share in percent with two significant digits, and none of them behind 10 %."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def duration(seconds: float) -> str:
    """A time span in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def name(uri: str) -> str:
    """The last component of an address."""
    return uri.rstrip("/").rsplit("/", 1)[-1].rsplit("#", 1)[-1] or uri


def _table(out: Out, run: Mapping[str, Any]) -> dict[str, str]:
    """The location of a published table, and a relative link to it from the page."""
    table = out.table(run["night"], run["run_id"])
    return {"text": table, "link": quote(f"..{table.removeprefix(out.root)}", safe="/=")}


def draw_histogram(histogram: Histogram, threshold: float | None) -> HistogramDrawing:
    """Bars for the night, an outline for earlier nights.

    Heights are square roots of shares, so that the few anomalous images can be seen beside many
    normal ones.
    """
    tonight = histogram.normal + histogram.anomalous
    roots = np.sqrt(tonight / max(tonight.sum(), 1))
    before = np.sqrt(histogram.before / max(histogram.before.sum(), 1))
    scale = (_HEIGHT - 2) / max(roots.max(), before.max(), 1e-12)
    width = _WIDTH / BINS
    normal, anomalous = [], []
    for i in np.flatnonzero(tonight).tolist():
        height = max(float(roots[i] * scale), 2.0)  # visible even if it is one of millions
        share = float(histogram.anomalous[i] / tonight[i])
        upper = max(height * share, 2.0) if share else 0.0
        if upper:
            anomalous.append(Bar(i * width, _HEIGHT - height, upper))
        if height > upper:
            normal.append(Bar(i * width, _HEIGHT - height + upper, height - upper))
    points = [f"0,{_HEIGHT}"]
    for i, root in enumerate(before):
        y = round(float(_HEIGHT - root * scale), 2)
        points += [f"{i * width:g},{y:g}", f"{(i + 1) * width:g},{y:g}"]
    points.append(f"{_WIDTH},{_HEIGHT}")
    x = None
    if threshold is not None and histogram.low < threshold < histogram.high:
        x = round((threshold - histogram.low) / (histogram.high - histogram.low) * _WIDTH, 2)
    outline = " ".join(points) if histogram.before.any() else ""
    return HistogramDrawing(normal, anomalous, outline, x)
