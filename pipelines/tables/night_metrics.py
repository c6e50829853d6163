"""Names and meanings of the metrics of a night, for Prometheus: of Ray's, and of the text file."""

from __future__ import annotations

from typing import NamedTuple


class NightMetric(NamedTuple):
    """A gauge. All have the label `out` as well: the output folder."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()


FAILED = NightMetric("nightloupe_night_failed", "1 if the night failed, else 0")
STARTED = NightMetric("nightloupe_night_start_timestamp_seconds", "When it started")
ENDED = NightMetric("nightloupe_night_end_timestamp_seconds", "When it ended")
LAST_GOOD = NightMetric(
    "nightloupe_last_good_night_timestamp_seconds", "When the last night ended that did not fail"
)
WARNINGS = NightMetric("nightloupe_night_warnings", "Its warnings")
IMAGES = NightMetric("nightloupe_night_images", "Images of the night", ("state",))
STATUS_IMAGES = NightMetric("nightloupe_night_status_images", "Images by status", ("status",))
PRODUCT_IMAGES = NightMetric(
    "nightloupe_night_product_images", "Images of a product", ("product", "state")
)
SPEED = NightMetric("nightloupe_night_images_per_second", "Images scored per second")
