r"""Every night: list the archive, score what is new, changed or failed last time, publish.

python -m jobs.nightly --config night.toml
python -m jobs.nightly --archive s3://bucket/parts --pattern "{product}/{name}" \
    --model models:/nightloupe@champion --out s3://bucket/out

The command may be started at any time, also while another one runs. Exit codes: 0 every image of
the archive has its row under the model; 1 not every image has, and a message says why; 2 a setting
is wrong; 3 as 0, but the night warned, with --fail-on-warning; 75 (--busy_code) another night is
running on the output folder; 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from jobs import score
from jobs.cli import entry, sources
from jobs.cli.console import Progress, echo
from jobs.notify import message
from jobs.notify.notification import EndingNight, NotifySettings, notifying
from jobs.tracking.tracker import Tracker
from ops.detectors.model_folder import read_card
from ops.errors import SettingError
from pipelines.nights.hooks import NightHooks
from pipelines.nights.night import Night
from pipelines.nights.settings import NightSettings
from pipelines.tables import lock


@dataclass(frozen=True)
class Settings(NightSettings, NotifySettings, score.Settings):
    """Settings of jobs.nightly."""

    busy_code: int = entry.BUSY
    """The exit code if another night is running on the output folder. 0 where a scheduler takes
    every other code for a failure, as Ray and Kubernetes do."""


def main(argv: Sequence[str]) -> int:
    """Run one night."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    sources.check(settings.inventory, settings)
    settings.check_notify()
    if not settings.model:
        raise SettingError("name the model: --model FOLDER, s3://... or models:/name@alias")
    entry.check_access(settings)
    tracker = Tracker(settings.out)
    try:
        with (
            lock.locked(tracker.out, settings.lease) as check_lock,
            notifying(settings, tracker.out) as ending,
            Progress() as progress,
        ):
            warnings = _run_night(settings, tracker, check_lock, progress, ending)
    except lock.Locked as busy:
        return entry.busy(busy, settings.busy_code)
    return entry.WARNED if warnings and settings.fail_on_warning else 0


def _run_night(
    settings: Settings,
    tracker: Tracker,
    check_lock: Callable[[], None],
    progress: Progress,
    ending: EndingNight,
) -> list[str]:
    """Run the night, whose record `ending` gets; returns its warnings."""
    with (
        tracker.located(settings.model) as model,
        tracker.run("nightly", asdict(settings) | settings.without_addresses()) as record,
    ):
        score.check(read_card(model), settings)
        hooks = NightHooks(
            take_inventory=lambda location: sources.take(settings, location, progress),
            archive=() if settings.inventory else settings.locations(),
            model_name=tracker.name_of(settings.model),
            tracked=record,
            tracker_page=tracker.page,
            track_totals=lambda totals: record.metrics.update(score.metrics_of(totals)),
            echo=echo,
            print_summary=score.print_summary,
            describe=entry.describe,
            progress=progress,
            check_lock=check_lock,
        )
        night = Night(settings, tracker.out, model, settings.inventory, hooks)
        ending.record, ending.write = night.record, night.write_record
        try:
            return night.run()
        finally:
            record.title, record.description = message.describe(night.record)


if __name__ == "__main__":
    entry.start(main)
