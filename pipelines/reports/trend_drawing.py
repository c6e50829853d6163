"""Shapes of the charts over nights: each run is a column of width 1, so no value is interpolated.

A chart is `HEIGHT` units high and as many units wide as there are runs. The page stretches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pipelines.reports.report_queries import Row
from pipelines.reports.trend_data import Decided, TrendRun

HEIGHT = 100
_MARGIN = 4  # above and below the curves
_NAME = 14  # above scores, for the name of the model
Pair = tuple[float, float]
#: Values by place on the axis, None where there is none.
Values = Sequence[float | None]


class Shape(NamedTuple):
    """A path of SVG, and the name of its kind."""

    kind: str
    path: str


class Chart(NamedTuple):
    """A chart: its title, and its shapes from the back to the front."""

    title: str
    summary: str
    """The range of its values, in words."""
    shapes: list[Shape]
    key: str
    """Which legend belongs to it."""


class ModelChange(NamedTuple):
    """A place on the axis from which on another model scores."""

    place: int
    run: TrendRun


def model_changes(runs: Sequence[TrendRun]) -> list[ModelChange]:
    """Where the model is another one than before."""
    return [
        ModelChange(place, run)
        for place, run in enumerate(runs)
        if place and run.model_id != runs[place - 1].model_id
    ]


def scores_chart(
    runs: Sequence[TrendRun], rows: Mapping[str, Row], number: Callable[[float | None], str]
) -> Chart:
    """Quantiles as bands, the median and the threshold; each model has its own scale."""
    of_runs = [rows.get(run.run_id) for run in runs]
    ranges: dict[str, Pair] = {}
    for row in filter(None, of_runs):
        if row["median"] is None:
            continue
        known = [row[name] for name in ("q10", "q90", "threshold") if row[name] is not None]
        low, high = ranges.get(row["model_id"], (known[0], known[0]))
        ranges[row["model_id"]] = min(low, *known), max(high, *known)

    def heights(name: str) -> Values:
        return [
            _height(row[name], *ranges[row["model_id"]], _NAME)
            if row and row["median"] is not None and row[name] is not None
            else None
            for row in of_runs
        ]

    models = [run.model_id for run in runs]
    shapes = [
        Shape("outer", area(heights("q10"), heights("q90"), models)),
        Shape("inner", area(heights("q25"), heights("q75"), models)),
        Shape("threshold", steps(heights("threshold"), models)),
        Shape("median", steps(heights("median"), models)),
    ]
    summary = ""
    if ranges:
        last = [row for row in of_runs if row and row["median"] is not None][-1]
        low, high = ranges[last["model_id"]]
        summary = f"{number(low)} to {number(high)}"
        if len(ranges) > 1:
            summary += f" under {last['model']}; each model has a scale of its own"
    return Chart("Scores", summary, shapes, "by-score")


def share_chart(
    title: str,
    kind: str,
    shares: Values,
    percent: Callable[[float], str],
    promised: Values = (),
    models: Sequence[str] = (),
) -> Chart:
    """Shares of images as columns from 0, and a line for promised ones."""
    top = max((value for value in (*shares, *promised) if value is not None), default=0.0)
    scaled, line = (
        [None if value is None else _height(value, 0, top or 1) for value in values]
        for values in (shares, promised)
    )
    ground = [None if value is None else _height(0, 0, 1) for value in shares]
    shapes = [Shape(kind, area(ground, scaled))]
    if any(value is not None for value in promised):
        shapes.append(Shape("threshold", steps(line, models)))
    return Chart(title, f"0 to {percent(top)}", shapes, kind)


def line_chart(title: str, values: Values, number: Callable[[float | None], str]) -> Chart:
    """Values as a line above 0."""
    top = max((value for value in values if value is not None), default=0.0)
    heights = [None if value is None else _height(value, 0, top or 1) for value in values]
    return Chart(title, f"0 to {number(top)}", [Shape("median", steps(heights))], "line")


def decisions_chart(decided: Sequence[Decided], count: Callable[[int], str]) -> Chart:
    """Numbers of decisions, one kind above the other."""
    top = max(each.defect + each.false_alarm + each.unsure for each in decided)
    ground = [0] * len(decided)
    shapes = []
    for kind in ("defect", "false_alarm", "unsure"):
        upper = [low + getattr(each, kind) for low, each in zip(ground, decided, strict=True)]
        lows, highs = (
            [
                _height(edge, 0, top) if high > low else None
                for edge, low, high in zip(edges, ground, upper, strict=True)
            ]
            for edges in (ground, upper)
        )
        shapes.append(Shape(kind.replace("_", "-"), area(lows, highs)))
        ground = upper
    return Chart("Decisions", f"up to {count(top)}", shapes, "by-decision")


def _height(value: float, low: float, high: float, above: float = _MARGIN) -> float:
    """The distance of a value from the upper edge."""
    share = (value - low) / (high - low) if high > low else 0.5
    return HEIGHT - _MARGIN - share * (HEIGHT - _MARGIN - above)


def _stretches(values: Values, models: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First and last place of each stretch without a gap and without a change of the model."""
    start = None
    for place in range(len(values) + 1):
        here = place < len(values) and values[place] is not None
        changed = bool(models) and 0 < place < len(models) and models[place] != models[place - 1]
        if start is not None and (not here or changed):
            yield start, place - 1
            start = None
        if here and start is None:
            start = place


def area(lower: Values, upper: Values, models: Sequence[str] = ()) -> str:
    """The path around the area between two edges, which have gaps at the same places."""
    path = []
    for first, last in _stretches(lower, models):
        places = range(first, last + 1)
        path.append(f"M{first} {_short(upper[first])}H{first + 1}")
        path += [f"V{_short(upper[place])}H{place + 1}" for place in places[1:]]
        path += [f"V{_short(lower[place])}H{place}" for place in reversed(places)]
        path.append("Z")
    return "".join(path)


def steps(values: Values, models: Sequence[str] = ()) -> str:
    """The path of a line that is level over each place."""
    path = []
    for first, last in _stretches(values, models):
        path.append(f"M{first} {_short(values[first])}H{first + 1}")
        path += [f"V{_short(values[p])}H{p + 1}" for p in range(first + 1, last + 1)]
    return "".join(path)


def _short(value: float | None) -> str:
    return f"{value or 0:.1f}".removesuffix(".0")
