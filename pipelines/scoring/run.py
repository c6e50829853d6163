"""One scoring run: its settings, its name, and what is on record of it."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ops.errors import SettingError
from ops.images.fetch import FetchSettings
from ops.images.inventory import Inventory
from ops.results.write_maps import Policy
from ops.storage import files
from ops.storage.paths import Out
from pipelines.cluster.shared_model import SharedModel


@dataclass(frozen=True)
class ScoreSettings:
    """Settings of a scoring run that its rows depend on."""

    maps: str = "flagged"
    """Which maps are drawn: none, flagged, all, or top:K for the K highest scores."""
    overlays: bool = False
    """Also draw each map over its image, for people."""
    chunk_rows: int = 4096
    """Rows of a part: what a killed run may have to repeat, and a row group of the table."""

    def __post_init__(self) -> None:
        """Refuse what is no policy."""
        if not re.fullmatch(r"none|flagged|all|top:[1-9]\d*", self.maps):
            raise SettingError(f"maps {self.maps!r} is none of: none, flagged, all, top:K")
        if self.chunk_rows < 1:
            raise SettingError(f"chunk_rows {self.chunk_rows} must be at least 1")

    @property
    def top(self) -> int:
        """K of top:K, else 0."""
        return int(self.maps[4:]) if self.maps.startswith("top:") else 0

    @property
    def policy(self) -> Policy:
        """What the stream draws; top:K is only known at its end."""
        if self.maps == "flagged":
            return "flagged"
        return "all" if self.maps == "all" else "none"


@dataclass(frozen=True)
class Run:
    """One scoring of one inventory with one model."""

    run_id: str
    night: str
    out: Out
    inventory: Inventory
    model: SharedModel
    settings: ScoreSettings
    after: tuple[str, ...] = ()


def check_night(night: str | None) -> None:
    """Refuse what is no date, before anything starts. Raises SettingError."""
    if night is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", night):
        raise SettingError(f"night {night!r} must be a date such as 2026-11-20")


def prepare(
    inventory: Inventory,
    model: SharedModel,
    out: Out,
    settings: ScoreSettings,
    night: str | None,
    after: Sequence[str] = (),
) -> Run:
    """Name the run, by night and by what it scores with what.

    Without `night` an unfinished run of the same inventory, model and settings is taken up again,
    else tonight's begins. `after` names the runs whose failures this one tries again: it is not
    the same as an earlier attempt at the same images.
    """
    check_night(night)
    key = run_key(inventory, model.card.model_id, asdict(settings), after)
    if night is None:
        nights = sorted(_unfinished(out, key))
        night = nights[-1] if nights else datetime.datetime.now(datetime.UTC).date().isoformat()
    return Run(f"{night}-{key}", night, out, inventory, model, settings, tuple(after))


def run_key(
    inventory: Inventory, model_id: str, settings: Mapping[str, Any], after: Sequence[str] = ()
) -> str:
    """What stands behind the night in a run's name: a hash of what is scored with what."""
    content = [inventory.content_hash(), model_id, dict(settings), *after]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _unfinished(out: Out, key: str) -> list[str]:
    """Nights of runs with this key that are under way; clears up behind those that died late."""
    work = out.work()
    if not files.is_folder(work):
        return []
    names = {item.name.split("/", 1)[0] for item in files.listing(work)}
    found = []
    for run_id in sorted(name for name in names if name.endswith(f"-{key}")):
        if _totals(out, run_id):
            files.remove_folder(out.work(run_id))
        else:
            found.append(run_id[:10])
    return found


def finished(run: Run) -> dict[str, Any] | None:
    """The totals of a run that was published, else None."""
    return _totals(run.out, run.run_id)


def _totals(out: Out, run_id: str) -> dict[str, Any] | None:
    location = out.run(run_id)
    if not files.exists(location):
        return None
    totals: dict[str, Any] | None = files.read_json(location).get("totals")
    return totals


def described(run: Run, fetch: FetchSettings, started: datetime.datetime) -> dict[str, Any]:
    """What `runs/<run_id>.json` says from the start; totals join it at the end."""
    card = run.model.card
    return {
        "run_id": run.run_id,
        "night": run.night,
        "inventory": run.inventory.location,
        "images": len(run.inventory),
        "model_id": card.model_id,
        "method": card.method,
        "settings": asdict(run.settings),
        "after": list(run.after),
        "input": asdict(card.input),
        "map_scale": card.map_scale._asdict(),
        "fetch": asdict(fetch),
        "false_alarm_rate": card.false_alarm_rate,
        "thresholds": {
            name: product.calibration.threshold(card.false_alarm_rate)
            for name, product in card.products.items()
        },
        "held_out": {n: len(product.calibration.scores) for n, product in card.products.items()},
        "started": started.isoformat(timespec="seconds"),
    }
