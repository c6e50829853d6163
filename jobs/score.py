r"""Score every image of an inventory: a Parquet table with one row each, and anomaly maps.

python -m jobs.score --inventory parts.parquet --model out/models/4f2a --out out --maps all
python -m jobs.score --archive s3://bucket/parts --pattern "{product}/{name}" \
    --model models:/nightloupe@champion --out s3://bucket/out

The same command continues a run that was killed, and does nothing if the run is finished. It exits
with 75 while another job scores into the output folder or removes from it, and with 3 if it warned
of the images and --fail-on-warning is set.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.cli import entry, sources
from jobs.cli.console import Progress, echo
from jobs.tracking.record import Record, title
from jobs.tracking.tracker import Tracker
from ops.archives.fetch import FetchSettings
from ops.detectors.model_card import ModelCard
from ops.detectors.model_folder import read_card
from ops.errors import SettingError, UserError
from ops.failure import max_failures
from ops.results.false_alarm_rates import by_product
from ops.storage import files
from ops.storage.paths import Out
from pipelines.cluster import memory
from pipelines.cluster.connection import connected
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel
from pipelines.reports import model_fit
from pipelines.scoring import score
from pipelines.scoring.resume import finished_totals, resume_or_start
from pipelines.scoring.run import Run, ScoreSettings, check_night
from pipelines.tables import lock, run_order

#: Share of a product's images that may be anomalous beyond the promised rate without a warning.
_ANOMALOUS_SHARE = 0.1


@dataclass(frozen=True)
class Settings(ScoreSettings, sources.Listing):
    """Settings of jobs.score."""

    inventory: str = ""
    """An inventory file (see jobs.inventory), instead of an archive."""
    model: str = ""
    """A model folder (path or s3:// URI), or models:/name@alias."""
    out: str = "out"
    """The output folder; a path or s3:// URI."""
    night: str | None = None
    """The night's date; default: that of the unfinished run, else today's (UTC)."""
    max_failed: int | float | str = "50%"
    """How many images may fail before the job ends with an error: a count or a share."""
    cluster: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else one is started for the job."""
    fetch: FetchSettings = field(default_factory=FetchSettings)
    resources: Resources = field(default_factory=Resources)
    fail_on_warning: bool = False
    """Exit with 3 if the job is done and warned."""
    lease: float = 120.0
    """On S3: seconds without a sign of life after which another job on the output folder is taken
    for dead."""


def main(argv: Sequence[str]) -> int:
    """Score an inventory."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    sources.check(settings.inventory, settings)
    max_failures(str(settings.max_failed), 0)
    check_night(settings.night)
    out, tracker = Out(settings.out), Tracker(settings.out)
    if not settings.model:
        raise SettingError("name the model: --model FOLDER, s3://... or models:/name@alias")
    with tracker.located(settings.model) as folder:
        check(read_card(folder), settings)
        entry.check_access(settings)
        with lock.locked(out, settings.lease) as check_lock, Progress() as progress:
            if warning := run_order.clock_warning(out, datetime.datetime.now(datetime.UTC)):
                echo(f"warning: {warning}")
            return _score(settings, tracker, folder, check_lock, progress)


def _score(
    settings: Settings,
    tracker: Tracker,
    folder: str,
    check_lock: Callable[[], None],
    progress: Progress,
) -> int:
    """Score an inventory with the model of a folder; the caller holds the lock of `out`."""
    policy = settings.score_settings()
    inventory = sources.inventory_of(settings.inventory, settings, tracker.out, progress)
    warnings = list(filter(None, [model_fit.unknown_products(inventory, read_card(folder))]))
    for sentence in warnings:
        echo(f"warning: {sentence}")
    with connected(settings.cluster):
        model = SharedModel.read(folder, inventory.products())
        memory.check_scoring(model, settings.resources)
        name = tracker.name_of(settings.model)
        run = resume_or_start(
            inventory, model, tracker.out, policy, settings.night, model_name=name
        )
        if totals := finished_totals(run):
            echo(f"run {run.run_id} is finished; nothing to do")
            print_summary(totals)
            return _code(settings, warnings)
        with tracker.run("score", asdict(settings)) as record:
            record.tags |= {"run_id": run.run_id, "model_id": model.card.model_id}
            totals = score.score(
                run,
                settings.fetch,
                settings.resources,
                str(settings.max_failed),
                progress,
                check_lock=check_lock,
            )
            record.metrics |= metrics_of(totals)
            warnings += _warn(run, warnings)
            record.tags |= {f"warning_{n}": sentence for n, sentence in enumerate(warnings)}
            record.metrics["warnings"] = float(len(warnings))
            describe(record, "score", run, totals, len(warnings))
    echo(f"run: {run.run_id}")
    print_summary(totals)
    return _code(settings, warnings)


def describe(record: Record, job: str, run: Run, totals: Mapping[str, Any], warnings: int) -> None:
    """Name a tracked run after its night, products and images, and say what came of it."""
    model = run.model_name or f"{run.model.card.method} {run.model.card.model_id[:8]}"
    record.title = title(job, run.night, run.inventory.products(), totals["images"])
    record.description = (
        f"{totals['images']:,} images of the night {run.night} under {model}: "
        f"{totals['anomalous']:,} anomalous, {totals['failed']:,} failed; {warnings:,} warnings."
    )


def _warn(run: Run, earlier: Sequence[str]) -> list[str]:
    """Warn of what the model does not fit, also in the record of the run; returns the sentences."""
    location = run.out.run(run.run_id)
    record = files.read_json(location)
    found = model_fit.of_run(run.out, record, run.model.card, _ANOMALOUS_SHARE)
    for sentence in found:
        echo(f"warning: {sentence}")
    files.write_json(location, {**record, "warnings": [*earlier, *found]})
    return found


def _code(settings: Settings, warnings: Sequence[str]) -> int:
    return entry.WARNED if warnings and settings.fail_on_warning else 0


def check(card: ModelCard, settings: Settings) -> None:
    """Refuse --maps flagged for a model without thresholds, and rates of unknown products.

    Raises UserError.
    """
    by_product(settings.false_alarm_rate, card.products)
    uncalibrated = [name for name, p in card.products.items() if not p.calibration.scores]
    if settings.maps == "flagged" and uncalibrated:
        raise UserError(
            f"--maps flagged needs thresholds, but no image of {', '.join(uncalibrated)} was held "
            "out for calibration; choose --maps none, all or top:K"
        )


def metrics_of(totals: dict[str, Any]) -> dict[str, float]:
    """The numbers among a run's totals, to track."""
    numbers = {k: float(v) for k, v in totals.items() if isinstance(v, (int, float))}
    return numbers | {f"status.{k}": float(v) for k, v in totals["statuses"].items()}


def print_summary(totals: dict[str, Any]) -> None:
    """Print a run's totals."""
    counts = ", ".join(f"{count} {status}" for status, count in totals["statuses"].items())
    echo(
        f"{totals['images']} images: {counts}; {totals['anomalous']} anomalous; "
        f"{totals['images_per_second']:g} images/s"
    )
    if totals.get("copied"):  # older records lack it
        echo(f"{totals['copied']} images have the content of one scored before, and its scores")
    if totals["maps_beyond_scale"]:
        echo(
            f"{totals['maps_beyond_scale']} maps are clipped at the top of the model's scale; "
            "scores are not"
        )
    if totals.get("regions_hidden"):
        echo(f"{totals['regions_hidden']} regions are left out; see --regions.min-area")
    if totals.get("retries"):
        echo(f"{totals['retries']} reads were repeated before the store answered")
    echo(f"table: {totals['table']}")


if __name__ == "__main__":
    entry.start(main)
