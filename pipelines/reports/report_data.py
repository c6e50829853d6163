"""What a report says of a night: figures of its tables, and pictures of its worst parts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from ops.errors import SettingError, UserError
from ops.images.decode import DecodeSettings, decode
from ops.images.failure import Failure
from ops.images.fetch import FetchSettings, fetch
from ops.progress import ProgressCallback
from ops.results import anomaly_map, overlays
from ops.storage import uris
from ops.storage.paths import Out
from pipelines.reports import drift, report_queries
from pipelines.reports.report_queries import Flips, Histogram, Row
from pipelines.tables import current_scores, run_records

#: Pictures are decoded whole before they are shrunk, so few at once.
_THREADS = 4


@dataclass(frozen=True)
class ReportSettings:
    """What a report shows."""

    parts: int = 60
    """How many of the worst parts are pictured, of failures and of flips named, at most."""
    thumbnail: int = 256
    """Longer side of their pictures in pixels."""
    price_per_hour: float | None = None
    """What the cluster costs in an hour; without it no cost is told."""
    currency: str = ""
    """What the price is in, such as EUR."""

    def __post_init__(self) -> None:
        """Refuse what would make a page that no browser shows."""
        for name, least, most in (("parts", 0, 1000), ("thumbnail", 32, 1024)):
            if not least <= (value := getattr(self, name)) <= most:
                raise SettingError(f"{name} {value} must lie between {least} and {most}")
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < float("inf"):
            raise SettingError(f"price_per_hour {self.price_per_hour} must be a price")

    @property
    def bytes_each(self) -> int:
        """The most bytes of one picture."""
        return max(2048, self.thumbnail**2 // 2)


class Pictures(NamedTuple):
    """What is shown of one part, as data URIs; empty where there is nothing, and then `note`."""

    whole: str = ""
    overlay: str = ""
    close_up: str = ""
    note: str = ""


class Part(NamedTuple):
    """A row of the score table, and its pictures."""

    row: Row
    pictures: Pictures


class Facts(NamedTuple):
    """All that a report says."""

    runs: Sequence[Mapping[str, Any]]
    """Records of the night's runs, of one model, in the order of their start."""
    settings: ReportSettings
    statuses: Mapping[str, int]
    products: Sequence[Row]
    """Rows of `drift.DRIFT`; those with the most anomalous images first."""
    same_unit: bool
    """Whether earlier scores are of the same model."""
    has_earlier: bool
    """Whether anything was published before."""
    histograms: Mapping[str | None, Histogram]
    parts: Sequence[Part]
    """The worst, by score."""
    failed: Sequence[Row]
    flips: Flips
    tracker: str
    """Where the tracker shows the run, or where it is; empty if there is none."""

    @property
    def images(self) -> int:
        """Images of the night."""
        return sum(self.statuses.values())

    @property
    def failures(self) -> int:
        """Those of them without a score."""
        return self.images - self.statuses.get("ok", 0)

    @property
    def anomalous(self) -> int:
        """Those of them that were called so."""
        return sum(int(row["anomalous_b"]) for row in self.products)

    @property
    def thresholds(self) -> Mapping[str, float | None]:
        """Of each product."""
        return dict(self.runs[-1].get("thresholds", {}))

    @property
    def seconds(self) -> float | None:
        """From start to end, all runs together; None if one of them has not told."""
        told = [run["totals"].get("seconds") for run in self.runs]
        return None if None in told else float(sum(told))

    @property
    def resumed(self) -> int:
        """Images that were scored by attempts which these seconds do not hold."""
        return sum(run["totals"].get("resumed", 0) for run in self.runs)

    @property
    def images_per_second(self) -> float | None:
        """Without those of earlier attempts."""
        done = sum(run["totals"]["images"] for run in self.runs) - self.resumed
        return done / self.seconds if self.seconds else None

    @property
    def cost(self) -> float | None:
        """Price per hour times hours; None if either is unknown."""
        if self.settings.price_per_hour is None or self.seconds is None:
            return None
        return self.settings.price_per_hour * self.seconds / 3600


def collect(
    out: Out,
    runs: Sequence[Mapping[str, Any]],
    settings: ReportSettings,
    reading: FetchSettings,
    watch: ProgressCallback,
    tracker: str = "",
) -> Facts:
    """What there is to say of finished runs of one night and one model, given their records.

    `runs` are in the order of their start. Raises UserError if jobs.expire took rows of one.
    """
    for record in runs:
        run_records.check_not_expired(record)
    last = runs[-1]
    model_id = str(last["model_id"])
    names = [str(record["run_id"]) for record in runs]
    with current_scores.opened(out) as database:
        measure = drift.load_runs(database, names, model_id, run_records.started_after(out, last))
        products = drift.drift_of(database, measure or "score", drift.SAMPLE).to_pylist()
        here = [row for row in products if row["images_b"]]
        worst = report_queries.worst(database, model_id, settings.parts)
        facts = Facts(
            runs=runs,
            settings=settings,
            statuses=report_queries.statuses(database),
            products=sorted(here, key=lambda r: (-r["anomalous_b"], r["product"] or "")),
            same_unit=measure == "score",
            has_earlier=measure is not None,
            histograms=report_queries.histograms(database, measure == "score"),
            parts=[],
            failed=report_queries.failed(database, model_id, settings.parts),
            flips=report_queries.flips(database, settings.parts),
            tracker=tracker,
        )
    thresholds = facts.thresholds

    def pictured(row: Row) -> Part:
        return Part(row, _pictures(out, row, thresholds.get(row["product"]), settings, reading))

    parts = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(pictured, worst):
            parts.append(part)
            watch("pictures", len(parts), len(worst), sum(not p.pictures.whole for p in parts))
    return facts._replace(parts=parts)


def _pictures(
    out: Out, row: Row, threshold: float | None, settings: ReportSettings, reading: FetchSettings
) -> Pictures:
    """The picture, if it is still what was scored, and its map, if one was drawn."""
    try:
        data = fetch(row["uri"], None, None, reading)
        if hashlib.sha256(data).hexdigest() != row["content_sha256"]:
            return Pictures(note="No picture: what lies there now is not what was scored.")
        depth = row["bit_depth"]
        picture = decode(data, DecodeSettings(depth if 9 <= depth <= 16 else None))
    except Failure as failure:
        return Pictures(note=f"No picture: {failure.reason}.")
    side, most = settings.thumbnail, settings.bytes_each
    small = overlays.thumbnail(picture, side)
    whole = overlays.data_uri(small, most)
    close_up = ""
    if max(picture.width, picture.height) > 2 * side:
        detail = overlays.close_up(picture, row["peak_x"], row["peak_y"], side)
        close_up = overlays.data_uri(detail, most)
    if not row["map_uri"]:
        return Pictures(whole, "", close_up, "No map was drawn of it.")
    try:
        location = out.map(row["model_id"], row["image_id"])
        found = anomaly_map.decode(fetch(uris.make(location), None, None, reading))
    except (Failure, UserError):
        return Pictures(whole, "", close_up, "Its map cannot be read any more.")
    overlay = overlays.thumbnail_overlay(small, picture, found, threshold)
    return Pictures(whole, overlays.data_uri(overlay, most), close_up)
