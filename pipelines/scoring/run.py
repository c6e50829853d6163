"""One scoring run: its settings, its id, and its record."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import Inventory
from ops.errors import SettingError
from ops.images.inspection_files import write_masks
from ops.results import false_alarm_rates
from ops.results.false_alarm_rates import Rates, by_product
from ops.results.regions import RegionSettings
from ops.results.write_maps import Policy
from ops.storage import files
from ops.storage.paths import Out, mask_file
from pipelines.cluster.shared_model import SharedModel


@dataclass(frozen=True)
class ScoreSettings:
    """Settings that a run's id depends on."""

    maps: str = "flagged"
    """Images whose anomaly map is written: none, flagged (anomalous ones), all, or top:K (those of
    the K highest scores)."""
    overlays: bool = False
    """Also write each map as an overlay over its image."""
    chunk_rows: int = 4096
    """Rows per chunk. A run that was killed scores its unfinished chunks again. Also the size of
    the published table's row groups, which hold at least 4096 rows."""
    false_alarm_rate: Rates = None
    """Share of good images that may be called anomalous, instead of the model's: a number for all
    products, or one for each as jobs.tune writes them, '{"washer": 0.02}'; others keep the
    model's. It holds for images scored from now on."""
    regions: RegionSettings = field(default_factory=RegionSettings)

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        if not re.fullmatch(r"none|flagged|all|top:[1-9]\d*", self.maps):
            raise SettingError(f"maps {self.maps!r} is none of: none, flagged, all, top:K")
        if self.chunk_rows < 1:
            raise SettingError(f"chunk_rows {self.chunk_rows} must be at least 1")
        false_alarm_rates.check(self.false_alarm_rate)

    @classmethod
    def of_record(cls, settings: Mapping[str, Any]) -> ScoreSettings:
        """The settings that the record of a run or a night has."""
        return cls(**{**settings, "regions": RegionSettings(**settings["regions"])})

    def score_settings(self) -> ScoreSettings:
        """These settings alone, of those that a job has."""
        return ScoreSettings(**{f.name: getattr(self, f.name) for f in fields(ScoreSettings)})

    @property
    def top(self) -> int:
        """K of top:K; 0 for other policies."""
        return int(self.maps[4:]) if self.maps.startswith("top:") else 0

    @property
    def policy(self) -> Policy:
        """Which maps are drawn while images are scored; those of top:K are drawn at the end."""
        if self.maps == "flagged":
            return "flagged"
        return "all" if self.maps == "all" else "none"


@dataclass(frozen=True)
class Run:
    """One scoring of one inventory with one model.

    `after` and `model_name`: see `resume_or_start`.
    """

    run_id: str
    night: str
    number: int
    """Its place in the order of all runs; see `pipelines.tables.run_order`."""
    out: Out
    inventory: Inventory
    model: SharedModel
    settings: ScoreSettings
    after: tuple[str, ...] = ()
    model_name: str = ""

    @property
    def rates(self) -> dict[str, float]:
        """The false-alarm rate of each product."""
        card = self.model.card
        return card.rates(by_product(self.settings.false_alarm_rate, card.products))

    @property
    def thresholds(self) -> dict[str, float | None]:
        """The threshold of each product."""
        return self.model.card.thresholds(self.rates)


def check_night(night: str | None) -> None:
    """Check that a night is a date. Raises SettingError."""
    if night is None:
        return
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", night, re.ASCII):
            raise ValueError
        datetime.date.fromisoformat(night)
    except ValueError:
        raise SettingError(f"night {night!r} must be a date such as 2026-11-20") from None


def run_key(
    inventory: Inventory, model_id: str, settings: Mapping[str, Any], after: Sequence[str] = ()
) -> str:
    """A hash of a run's images, model and settings, which follows the night in its id."""
    content = [inventory.content_hash(), model_id, dict(settings), *after]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def new_record(run: Run, fetch: FetchSettings, started: datetime.datetime) -> dict[str, Any]:
    """The content of `runs/<run_id>.json` when the run starts; its totals are added at the end."""
    card = run.model.card
    regions = run.settings.regions.under(card.region_false_alarm_rate)
    return {
        "run_id": run.run_id,
        "night": run.night,
        "number": run.number,
        "inventory": run.inventory.location,
        "images": len(run.inventory),
        "model_id": card.model_id,
        "model_name": run.model_name,
        "method": card.method,
        "settings": asdict(run.settings),
        "after": list(run.after),
        "input": asdict(card.input),
        "decode": asdict(card.decode),
        "map_scale": card.map_scale._asdict(),
        "fetch": asdict(fetch),
        "false_alarm_rate": card.false_alarm_rate,
        "false_alarm_rates": run.rates,
        "thresholds": run.thresholds,
        "regions": asdict(regions),
        "pixel_thresholds": {
            name: product.peaks.threshold(regions.false_alarm_rate)
            for name, product in card.products.items()
        },
        "views": card.views,
        "masks": card.masks,
        "grown_by": card.fit.get("false_alarms", []),
        "held_out": {name: len(p.calibration.scores) for name, p in card.products.items()},
        "started": started.isoformat(timespec="seconds"),
    }


def keep_part_calibrations(run: Run) -> None:
    """Copy the model's calibrations of parts into the output folder, once for each model."""
    parts = run.model.card.parts
    location = run.out.part_calibrations(run.model.card.model_id)
    if parts and not files.exists(location):
        files.write_json(location, {name: each.to_json() for name, each in parts.items()})


def keep_masks(run: Run) -> None:
    """Copy the model's inspection masks into the output folder; evaluations need them.

    Those of products that the inventory lacks are not read, and so not copied either.
    """
    folder = run.out.inspection_masks(run.model.card.model_id)
    missing = {
        name: mask
        for name, mask in run.model.masks.items()
        if not files.exists(files.join(folder, mask_file(name)))
    }
    write_masks(folder, missing)
