r"""Score every image of an inventory: a Parquet table with one row each, and maps as 16-bit PNG.

python -m jobs.score --inventory parts.parquet --model out/models/4f2a --out out --maps all
python -m jobs.score --archive s3://bucket/parts --pattern "{product}/{name}" \
    --model models:/nightloupe@champion --out s3://bucket/out

The same command finishes a run that was killed, and leaves a finished one as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.cli import entry, sources
from jobs.cli.console import Progress, echo
from jobs.tracking.tracker import Tracker
from ops.detectors.model_folder import ModelCard, read_card
from ops.errors import SettingError, UserError
from ops.images.fetch import FetchSettings
from ops.storage.paths import Out
from pipelines.cluster import memory
from pipelines.cluster.failure_limit import max_failures
from pipelines.cluster.resources import Resources, connected
from pipelines.cluster.shared_model import SharedModel
from pipelines.scoring import run as runs
from pipelines.scoring import score
from pipelines.scoring.run import ScoreSettings


@dataclass(frozen=True)
class Settings(ScoreSettings, sources.Listing):
    """Settings of jobs.score."""

    inventory: str = ""
    """An inventory of jobs.inventory; or name an archive."""
    model: str = ""
    """A model folder (path or s3:// URI), or models:/name@alias."""
    out: str = "out"
    """The output folder; a path or s3:// URI."""
    night: str | None = None
    """The night's date; default: that of the unfinished run, else today's (UTC)."""
    max_failed: int | float | str = "50%"
    """How many images may fail, as a count or share, before the job ends."""
    cluster: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else one is started for the job."""
    fetch: FetchSettings = field(default_factory=FetchSettings)
    resources: Resources = field(default_factory=Resources)


def main(argv: Sequence[str]) -> int:
    """Score an inventory."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    sources.check(settings.inventory, settings)
    max_failures(str(settings.max_failed), 0)
    runs.check_night(settings.night)
    out, tracker = Out(settings.out), Tracker(settings.out)
    policy = ScoreSettings(settings.maps, settings.overlays, settings.chunk_rows)
    if not settings.model:
        raise SettingError("name the model: --model FOLDER, s3://... or models:/name@alias")
    with tracker.located(settings.model) as place:
        check(read_card(place), settings)
        entry.check_access(settings)
        with Progress() as progress, connected(settings.cluster):
            inventory = sources.inventory_of(settings.inventory, settings, out, progress)
            model = SharedModel.read(place, inventory.products())
            memory.check_scoring(model, settings.resources)
            run = runs.prepare(inventory, model, out, policy, settings.night)
            if totals := runs.finished(run):
                echo(f"run {run.run_id} is finished; nothing to do")
                print_summary(totals)
                return 0
            with tracker.run("score", asdict(settings)) as record:
                record.tags |= {"run_id": run.run_id, "model_id": model.card.model_id}
                totals = score.score(
                    run, settings.fetch, settings.resources, str(settings.max_failed), progress
                )
                record.metrics |= metrics_of(totals)
    echo(f"run: {run.run_id}")
    print_summary(totals)
    return 0


def check(card: ModelCard, settings: Settings) -> None:
    """Refuse maps that the model cannot choose."""
    uncalibrated = [name for name, p in card.products.items() if not p.calibration.scores]
    if settings.maps == "flagged" and uncalibrated:
        raise UserError(
            f"--maps flagged needs thresholds, but {uncalibrated} were fitted without hold-out; "
            "choose --maps none, all or top:K"
        )


def metrics_of(totals: dict[str, Any]) -> dict[str, float]:
    """Totals as a tracker takes them."""
    plain = {k: float(v) for k, v in totals.items() if isinstance(v, (int, float))}
    return plain | {f"status.{k}": float(v) for k, v in totals["statuses"].items()}


def print_summary(totals: dict[str, Any]) -> None:
    """Totals for people."""
    counts = ", ".join(f"{count} {status}" for status, count in totals["statuses"].items())
    echo(
        f"{totals['images']} images: {counts}; {totals['anomalous']} anomalous; "
        f"{totals['images_per_second']:g} images/s"
    )
    if totals.get("copied"):  # runs of old have no such figure
        echo(f"{totals['copied']} of them were scored before under another name, and not again")
    if totals["maps_beyond_scale"]:
        echo(f"{totals['maps_beyond_scale']} maps reach beyond the model's scale; scores do not")
    if totals.get("retries"):
        echo(f"{totals['retries']} reads were repeated before the store answered")
    echo(f"table: {totals['table']}")


if __name__ == "__main__":
    entry.start(main)
