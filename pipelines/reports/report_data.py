"""The content of a report: numbers from a night's tables, and pictures of its worst parts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from ops.archives.fetch import FetchSettings, fetch
from ops.errors import SettingError, UserError
from ops.failure import Failure
from ops.images.decode import DecodeSettings, decode
from ops.progress import ProgressCallback
from ops.results import map_png, overlays
from ops.storage import uris
from ops.storage.paths import Out
from pipelines.reports import drift, report_queries
from pipelines.reports.changed_verdicts import ChangedVerdicts, changed_verdicts
from pipelines.reports.report_queries import Histogram, Row
from pipelines.tables import current_scores, run_records

#: Limits the memory for images, which are decoded at full size before they are shrunk.
_THREADS = 4


@dataclass(frozen=True)
class ReportSettings:
    """Settings of a report."""

    parts: int = 60
    """Maximum number of worst parts with pictures, of failures, and of changed verdicts."""
    thumbnail: int = 256
    """Longer side of the pictures in pixels."""
    price_per_hour: float | None = None
    """Price of the cluster per hour; without it the report shows no cost."""
    currency: str = ""
    """Currency of the price, such as EUR."""

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        for name, least, most in (("parts", 0, 1000), ("thumbnail", 32, 1024)):
            if not least <= (value := getattr(self, name)) <= most:
                raise SettingError(f"{name} {value} must lie between {least} and {most}")
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < float("inf"):
            raise SettingError(
                f"price_per_hour {self.price_per_hour} must be a number of at least 0"
            )

    @property
    def bytes_each(self) -> int:
        """Maximum size of one picture in bytes."""
        return max(2048, self.thumbnail**2 // 2)


class Pictures(NamedTuple):
    """The pictures of one part as data URIs. An empty one is missing; `note` tells why."""

    image: str = ""
    overlay: str = ""
    close_up: str = ""
    note: str = ""


class Part(NamedTuple):
    """A row of the score table, and its pictures."""

    row: Row
    pictures: Pictures


class ReportData(NamedTuple):
    """Everything that a report shows."""

    runs: Sequence[Mapping[str, Any]]
    """Records of the night's runs under one model, in order of their start."""
    settings: ReportSettings
    statuses: Mapping[str, int]
    products: Sequence[Row]
    """Rows of `drift.DRIFT`, in descending order of anomalous images."""
    same_unit: bool
    """Whether earlier scores come from the same model."""
    has_earlier: bool
    """Whether an earlier night was published."""
    histograms: Mapping[str | None, Histogram]
    parts: Sequence[Part]
    """The worst parts, in descending order of score."""
    failed: Sequence[Row]
    changed_verdicts: ChangedVerdicts
    tracker: str
    """The tracker's page of the run, or its address; empty if there is no tracker."""

    @property
    def images(self) -> int:
        """Number of images of the night."""
        return sum(self.statuses.values())

    @property
    def warnings(self) -> list[str]:
        """Sentences that the nights of these runs warned with."""
        return [sentence for run in self.runs for sentence in run.get("warnings", ())]

    @property
    def failures(self) -> int:
        """Number of images without a score."""
        return self.images - self.statuses.get("ok", 0)

    @property
    def anomalous(self) -> int:
        """Number of anomalous images."""
        return sum(int(row["anomalous_b"]) for row in self.products)

    @property
    def thresholds(self) -> Mapping[str, float | None]:
        """Thresholds by product."""
        return dict(self.runs[-1].get("thresholds", {}))

    @property
    def seconds(self) -> float | None:
        """Duration of all runs together; None if one of them is not recorded."""
        durations = [run["totals"].get("seconds") for run in self.runs]
        return None if None in durations else float(sum(durations))

    @property
    def resumed(self) -> int:
        """Number of images scored by earlier attempts, whose time is not part of `seconds`."""
        return sum(run["totals"].get("resumed", 0) for run in self.runs)

    @property
    def images_per_second(self) -> float | None:
        """Images scored per second, without those of earlier attempts."""
        done = sum(run["totals"]["images"] for run in self.runs) - self.resumed
        return done / self.seconds if self.seconds else None

    @property
    def cost(self) -> float | None:
        """Price per hour times hours; None if one of them is unknown."""
        if self.settings.price_per_hour is None or self.seconds is None:
            return None
        return self.settings.price_per_hour * self.seconds / 3600


def collect(
    out: Out,
    runs: Sequence[Mapping[str, Any]],
    settings: ReportSettings,
    fetch_settings: FetchSettings,
    progress: ProgressCallback,
    tracker: str = "",
) -> ReportData:
    """Collect what a report shows about finished runs of one night and one model.

    `runs` are their records in order of their start. Raises UserError if jobs.expire removed rows
    of one of them.
    """
    for record in runs:
        run_records.check_not_expired(record)
    last = runs[-1]
    model_id = str(last["model_id"])
    names = [str(record["run_id"]) for record in runs]
    with current_scores.opened(out) as database:
        measure = drift.load_runs(database, names, model_id, run_records.started_after(out, last))
        products = drift.drift_of(database, measure or "score", drift.SAMPLE).to_pylist()
        tonight = [row for row in products if row["images_b"]]
        worst = report_queries.worst(database, model_id, settings.parts)
        data = ReportData(
            runs=runs,
            settings=settings,
            statuses=report_queries.statuses(database),
            products=sorted(tonight, key=lambda r: (-r["anomalous_b"], r["product"] or "")),
            same_unit=measure == "score",
            has_earlier=measure is not None,
            histograms=report_queries.histograms(database, measure == "score"),
            parts=[],
            failed=report_queries.failed(database, model_id, settings.parts),
            changed_verdicts=changed_verdicts(database, settings.parts),
            tracker=tracker,
        )
    thresholds, decode_settings = data.thresholds, DecodeSettings(**last["decode"])

    def add_pictures(row: Row) -> Part:
        threshold = thresholds.get(row["product"])
        return Part(row, _pictures(out, row, threshold, settings, fetch_settings, decode_settings))

    parts = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(add_pictures, worst):
            parts.append(part)
            missing = sum(not part.pictures.image for part in parts)
            progress("pictures", len(parts), len(worst), missing)
    return data._replace(parts=parts)


def _pictures(
    out: Out,
    row: Row,
    threshold: float | None,
    settings: ReportSettings,
    fetch_settings: FetchSettings,
    decode_settings: DecodeSettings,
) -> Pictures:
    """The image, if its file is unchanged since it was scored, and its map, if it has one."""
    try:
        data = fetch(row["uri"], None, None, fetch_settings)
        if hashlib.sha256(data).hexdigest() != row["content_sha256"]:
            return Pictures(note="No picture: the file has changed since it was scored.")
        picture = decode(data, decode_settings)
    except Failure as failure:
        return Pictures(note=f"No picture: {failure.reason}.")
    side, most = settings.thumbnail, settings.bytes_each
    small = overlays.thumbnail(picture, side)
    image = overlays.data_uri(small, most)
    close_up = ""
    if max(picture.width, picture.height) > 2 * side:
        detail = overlays.close_up(picture, row["peak_x"], row["peak_y"], side)
        close_up = overlays.data_uri(detail, most)
    if not row["map_uri"]:
        return Pictures(image, "", close_up, "No anomaly map was written.")
    try:
        location = out.map(row["model_id"], row["image_id"])
        map_data = fetch(uris.make(location), None, None, fetch_settings)
        decoded_map = map_png.decode(map_data)
    except (Failure, UserError):
        return Pictures(image, "", close_up, "The anomaly map cannot be read.")
    overlay = overlays.thumbnail_overlay(small, picture, decoded_map, threshold)
    return Pictures(image, overlays.data_uri(overlay, most), close_up)
