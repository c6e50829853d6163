"""The content of a report: numbers from a night's tables, and pictures of its worst parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb

from ops.archives.fetch import FetchSettings
from ops.archives.views import views_of
from ops.errors import SettingError
from ops.images.decode import DecodeSettings
from ops.images.resize import InputSettings
from ops.progress import ProgressCallback
from ops.results.calibration import promised_rate
from ops.storage.paths import Out
from pipelines.reports import drift, report_queries
from pipelines.reports.changed_verdicts import ChangedVerdicts, changed_verdicts
from pipelines.reports.decision_summary import DecisionSummary, decision_summary
from pipelines.reports.part_pictures import Part, PartPictures
from pipelines.reports.part_summary import PartSummary, part_summary
from pipelines.reports.region_counts import RegionCounts, region_counts
from pipelines.reports.report_queries import Histogram, Row
from pipelines.tables import current_scores, decided_images, run_records, worst_first


@dataclass(frozen=True)
class ReportSettings:
    """Settings of a report."""

    parts: int = 60
    """Maximum number of worst parts with pictures, of failures, and of changed verdicts."""
    more_parts: int = 2000
    """Maximum number of further anomalous parts, which are listed without pictures."""
    thumbnail: int = 256
    """Longer side of the pictures in pixels."""
    price_per_hour: float | None = None
    """Price of the cluster per hour; without it the report shows no cost."""
    currency: str = ""
    """Currency of the price, such as EUR."""

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        for name, least, most in (
            ("parts", 0, 1000),
            ("more_parts", 0, 20_000),
            ("thumbnail", 32, 1024),
        ):
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
    """The first parts in the order of `worst_first`, with their pictures."""
    flagged: Sequence[Row]
    """Anomalous parts that follow them, without pictures."""
    failed: Sequence[Row]
    changed_verdicts: ChangedVerdicts
    tracker: str
    """The tracker's page of the run, or its address; empty if there is no tracker."""
    part_summary: PartSummary = PartSummary()
    dismissed: int = 0
    """Number of anomalous images that are not listed as a person called them false alarms."""
    decisions: DecisionSummary = DecisionSummary()
    regions: RegionCounts = RegionCounts()

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
    def unlisted(self) -> int:
        """Number of anomalous images beyond the length of the list."""
        pictured = sum(bool(part.row["is_anomalous"]) for part in self.parts)
        return self.anomalous - self.dismissed - pictured - len(self.flagged)

    @property
    def thresholds(self) -> Mapping[str, float | None]:
        """Thresholds by product."""
        return dict(self.runs[-1].get("thresholds", {}))

    def promised(self, product: str | None) -> float | None:
        """The false-alarm rate that calibration promises on average; None without calibration."""
        run = self.runs[-1]
        held_out = run.get("held_out", {}).get(product)
        rate = run.get("false_alarm_rates", {}).get(product)
        return promised_rate(rate, held_out) if held_out and rate else None

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
    last = runs[-1]
    model_id = str(last["model_id"])
    names = [str(record["run_id"]) for record in runs]
    tables = [str(record["totals"]["table"]) for record in runs]

    def read(
        database: duckdb.DuckDBPyConnection, _: Callable[[], None]
    ) -> tuple[ReportData, list[Row]]:
        later = run_records.started_after(out, last)
        measure = drift.load_runs(database, names, model_id, later, views_of(last))
        products = drift.drift_of(database, measure or "score", drift.SAMPLE).to_pylist()
        tonight = [row for row in products if row["images_b"]]
        decided_images.create(database, model_id, "b")
        worst_first.register(database, run_records.held_out(last))
        worst = report_queries.worst(database, model_id, settings.parts + settings.more_parts)
        data = ReportData(
            runs=runs,
            settings=settings,
            statuses=report_queries.statuses(database),
            products=sorted(tonight, key=lambda r: (-r["anomalous_b"], r["product"] or "")),
            same_unit=measure == "score",
            has_earlier=measure is not None,
            histograms=report_queries.histograms(database, measure == "score"),
            parts=[],
            flagged=[],
            failed=report_queries.failed(database, model_id, settings.parts),
            changed_verdicts=changed_verdicts(database, settings.parts),
            tracker=tracker,
            part_summary=part_summary(database, tables, names, model_id),
            dismissed=report_queries.dismissed(database, model_id),
            decisions=decision_summary(
                database, model_id, str(last["night"]), views_of(last), settings.parts
            ),
            regions=region_counts(database, out, runs, [row["image_id"] for row in worst]),
        )
        return data, worst

    with run_records.unexpired(out, *runs):
        data, rows = current_scores.read_consistently(out, read, labels=True)
    worst = rows[: settings.parts]
    flagged = [row for row in rows[settings.parts :] if row["is_anomalous"]]
    draw = PartPictures(
        out,
        data.thresholds,
        InputSettings(**last["input"]),
        DecodeSettings(**last["decode"]),
        fetch_settings,
        settings.thumbnail,
        settings.bytes_each,
        views_of(last),
    )
    parts = list[Part]()
    for part in draw.parts(worst, [str(record["inventory"]) for record in runs]):
        parts.append(part)
        missing = sum(not part.pictures.image for part in parts)
        progress("pictures", len(parts), len(worst), missing)
    place = {row["image_id"]: number for number, row in enumerate(worst)}
    parts.sort(key=lambda part: place[part.row["image_id"]])
    return data._replace(parts=parts, flagged=flagged)
