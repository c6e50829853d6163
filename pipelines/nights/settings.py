"""Settings of a night."""

from __future__ import annotations

from dataclasses import dataclass, field

from ops.archives.fetch import FetchSettings
from ops.errors import SettingError
from ops.failure import STATUSES, TRANSIENT, max_failures
from pipelines.cluster.resources import Resources
from pipelines.reports.trend_data import TrendSettings
from pipelines.scoring.run import ScoreSettings, check_night


@dataclass(frozen=True)
class NightSettings(ScoreSettings):
    """Settings of a night."""

    night: str | None = None
    """The night's date; default: that of the unfinished run, else today's (UTC)."""
    max_failed: int | float | str = "50%"
    """How many of tonight's images may fail before the job ends with an error: a count, or a share
    of the whole archive."""
    cluster: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else one is started for the job."""
    fetch: FetchSettings = field(default_factory=FetchSettings)
    resources: Resources = field(default_factory=Resources)
    retry: str = ",".join(TRANSIENT)
    """Statuses of failed images that are scored again, comma-separated. Images that failed with
    another status are scored again only if the image, its product or the model changes."""
    verify_content: float | str = "0%"
    """Share of the unchanged images, such as 1%, that are read again and compared with the hash of
    the bytes that were scored: another sample every night. Images that differ are scored again,
    with a warning."""
    warn_failed: int | float | str = "1%"
    """Warn if more of tonight's images fail than this count or share."""
    warn_drift: float = 0.25
    """Warn if the scores of a product drift from all earlier ones by more than this population
    stability index. By convention 0.1 is a slight and 0.25 a marked shift; .inf turns it off."""
    warn_anomalous: float | str = "10%"
    """Warn if more of a product's images are called anomalous than calibration promises of good
    ones plus this share, and chance does not explain it; 100% turns it off."""
    warn_trend: float = 0.01
    """Warn if a product differs from its earlier nights: if its median score or its share of
    anomalous images lies outside those of its earlier nights under the model, of at least 8 among
    --trend-nights, and chance has a probability below this, adjusted for all products. 0 turns it
    off."""
    report: bool = True
    """Also write the report page of the night (see jobs.report), and the pages over all nights
    (see jobs.trends)."""
    trend_nights: int = 90
    """How many nights the page over all nights shows."""

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        super().__post_init__()
        check_night(self.night)
        max_failures(str(self.max_failed), 0)
        max_failures(str(self.warn_failed), 0, "warn_failed")
        self.retried_statuses()
        self.verified_share()
        self.anomalous_share()
        TrendSettings(self.trend_nights)
        if not 0 <= self.warn_trend < 1:
            raise SettingError(f"warn_trend {self.warn_trend} must be at least 0 and less than 1")

    def verified_share(self) -> float:
        """The share of `verify_content`, 0 to 1. Raises SettingError for any other value."""
        return _share("verify_content", self.verify_content)

    def anomalous_share(self) -> float:
        """The share of `warn_anomalous`, 0 to 1. Raises SettingError for any other value."""
        return _share("warn_anomalous", self.warn_anomalous)

    def retried_statuses(self) -> list[str]:
        """The statuses of `retry`. Raises SettingError for an unknown one."""
        statuses = [word.strip() for word in self.retry.split(",") if word.strip()]
        failures = set(STATUSES) - {"ok"}
        if unknown := set(statuses) - failures:
            raise SettingError(
                f"retry: {', '.join(sorted(unknown))} is not the status of a failed image; "
                f"known: {', '.join(sorted(failures))}"
            )
        return statuses


def _share(setting: str, value: float | str) -> float:
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise SettingError(
            f"{setting} {value!r} must be a share from 0% to 100%, such as 1% or 0.01"
        )
    return share
