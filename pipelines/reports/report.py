"""One page about a night: its facts as HTML that needs nothing but itself.

Everything that comes from tables is escaped, control characters are shown as such, and the page's
own policy allows no script but its own and no request at all.
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

from ops.images.failure import STATUSES
from ops.images.fetch import FetchSettings
from ops.progress import ProgressCallback
from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports.alerts import has_drifted
from pipelines.reports.report_data import Facts, ReportSettings, collect
from pipelines.reports.report_queries import BINS, Histogram

#: Products that have a row of their own, those with the most anomalous images.
PRODUCTS = 100
_FOLDER = Path(__file__).parent
#: The histograms' own units.
_WIDTH, _HEIGHT = 8 * BINS, 72


class Bar(NamedTuple):
    """A bar of a histogram: from left and top, in its own units."""

    x: float
    y: float
    height: float


class Drawn(NamedTuple):
    """A histogram as it is drawn: bars stand on the ground, what was before is an outline."""

    normal: list[Bar]
    anomalous: list[Bar]
    before: str
    """Points of the outline; empty if there is nothing."""
    threshold: float | None
    """Where it is from the left, if it is in sight."""


def report(
    out: Out,
    runs: Sequence[Mapping[str, Any]],
    name: str,
    settings: ReportSettings,
    reading: FetchSettings,
    watch: ProgressCallback,
    tracker: str = "",
) -> str:
    """Write the page about finished runs of one night and one model; returns where it lies.

    `runs` are their records in the order of their start, `name` is the page's. Its size is bounded
    by the settings, and by `PRODUCTS`.
    """
    location = out.report(name)
    facts = collect(out, runs, settings, reading, watch, tracker)
    files.write_bytes(location, render(out, facts))
    return location


def render(out: Out, facts: Facts) -> bytes:
    """The page, as it lies below `out`."""
    script, style = ((_FOLDER / f"report.{kind}").read_text("utf-8") for kind in ("js", "css"))
    # Autoescape is for all templates, whatever they are called.
    world = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    world.filters |= {"figure": figure, "count": count, "duration": duration, "name": name}
    world.globals["drifted"] = has_drifted
    world.globals["value"] = lambda number: "" if number is None else number
    rows = [*(part.row for part in facts.parts), *facts.failed]
    text = world.get_template("report.html.j2").render(
        facts=facts,
        last=facts.runs[-1],
        meanings=STATUSES,
        products=facts.products[:PRODUCTS],
        drawn={
            product: draw(found, facts.thresholds.get(product or ""))
            for product, found in facts.histograms.items()
        },
        listed_products=sorted({f"p:{row['product'] or ''}" for row in rows}),
        listed_statuses=sorted({row["status"] for row in rows}),
        tables=[_table(out, run) for run in facts.runs],
        tracker=facts.tracker,
        tracker_is_web=re.match(r"https?://", facts.tracker) is not None,
        width=_WIDTH,
        height=_HEIGHT,
        script=Markup(script),  # noqa: S704 - ours
        style=Markup(style),  # noqa: S704 - ours
        script_hash=_hash(script),
        style_hash=_hash(style),
    )
    return text.encode()


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _shown(value: Any) -> Any:
    """Control characters, also those that turn the direction of writing, as one can see them."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    return value


def figure(value: float | None, digits: int = 4) -> str:
    """A measured number for people."""
    return "\N{EN DASH}" if value is None else f"{value:.{digits}g}"


def count(value: int) -> str:
    """A whole number with its thousands apart, by thin spaces."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def duration(seconds: float) -> str:
    """A time span for people."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def name(uri: str) -> str:
    """What stands last in an address."""
    return uri.rstrip("/").rsplit("/", 1)[-1].rsplit("#", 1)[-1] or uri


def _table(out: Out, run: Mapping[str, Any]) -> dict[str, str]:
    """A published table: where it lies, and the way there from the page."""
    table = out.table(run["night"], run["run_id"])
    return {"text": table, "link": quote(f"..{table.removeprefix(out.root)}", safe="/=")}


def draw(found: Histogram, threshold: float | None) -> Drawn:
    """Bars for the night, an outline for what was before.

    Heights are square roots of shares: good parts are many and alike, and the few others matter.
    """
    tonight = found.normal + found.anomalous
    roots = np.sqrt(tonight / max(tonight.sum(), 1))
    before = np.sqrt(found.before / max(found.before.sum(), 1))
    scale = (_HEIGHT - 2) / max(roots.max(), before.max(), 1e-12)
    width = _WIDTH / BINS
    normal, anomalous = [], []
    for place in np.flatnonzero(tonight).tolist():
        height = max(float(roots[place] * scale), 2.0)  # one among millions must still be seen
        share = float(found.anomalous[place] / tonight[place])
        red = max(height * share, 2.0) if share else 0.0
        if red:
            anomalous.append(Bar(place * width, _HEIGHT - height, red))
        if height > red:
            normal.append(Bar(place * width, _HEIGHT - height + red, height - red))
    points = [f"0,{_HEIGHT}"]
    for place, root in enumerate(before):
        y = round(float(_HEIGHT - root * scale), 2)
        points += [f"{place * width:g},{y:g}", f"{(place + 1) * width:g},{y:g}"]
    points.append(f"{_WIDTH},{_HEIGHT}")
    at = None
    if threshold is not None and found.low < threshold < found.high:
        at = round((threshold - found.low) / (found.high - found.low) * _WIDTH, 2)
    return Drawn(normal, anomalous, " ".join(points) if found.before.any() else "", at)
