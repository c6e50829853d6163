r"""Every night: list the archive, score what is new, changed or failed last time, publish.

python -m jobs.nightly --config night.toml
python -m jobs.nightly --archive s3://bucket/parts --pattern "{product}/{name}" \
    --model models:/nightloupe@champion --out s3://bucket/out

It may be started at any time, and twice. Exit codes: 0 every image of the archive has its row under
the model; 1 it has not, and a sentence says why; 2 a setting is wrong; 75 another night works here.
"""

from __future__ import annotations

import datetime
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs import score
from jobs.cli import entry, sources
from jobs.cli.console import Progress, echo
from jobs.tracking.tracker import Record, Tracker
from ops.detectors.model_folder import ModelCard, read_card
from ops.errors import RunError, SettingError
from ops.images.failure import PASSING, STATUSES
from ops.images.inventory import Inventory
from ops.storage import files, parquet
from pipelines.cluster import memory
from pipelines.cluster.failure_limit import max_failures
from pipelines.cluster.resources import connected
from pipelines.cluster.shared_model import SharedModel
from pipelines.reports import drift, report
from pipelines.reports.alerts import Limits, concerns
from pipelines.reports.report_data import ReportSettings
from pipelines.scoring import deduplicate
from pipelines.scoring import run as runs
from pipelines.scoring import score as scoring
from pipelines.scoring.run import ScoreSettings
from pipelines.tables import lock, pending, run_records


@dataclass(frozen=True)
class Settings(score.Settings):
    """Settings of jobs.nightly. A share of --max-failed is one of the whole archive."""

    retry: str = ",".join(PASSING)
    """Failures of earlier nights that are tried again, comma-separated; all others count as
    settled until the image, its product or the model changes."""
    warn_failed: int | float | str = "1%"
    """How many of the images scored tonight may fail, as a count or share, before a warning."""
    warn_drift: float = 0.25
    """How far a product's scores may move from all earlier ones before a warning, as a population
    stability index: by custom 0.1 is a slight shift and 0.25 a marked one; .inf for never."""
    report: bool = True
    """Also make the page of jobs.report about the night."""
    lease: float = 120.0
    """Seconds of silence after which a night on S3 is taken for dead."""

    def retried(self) -> list[str]:
        """The statuses. Raises SettingError for an unknown one."""
        found = [word.strip() for word in self.retry.split(",") if word.strip()]
        if unknown := set(found) - (set(STATUSES) - {"ok"}):
            known = ", ".join(sorted(set(STATUSES) - {"ok"}))
            raise SettingError(f"retry: {', '.join(sorted(unknown))} is no failure; known: {known}")
        return found


def main(argv: Sequence[str]) -> int:
    """Do what this night has to do."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    sources.check(settings.inventory, settings)
    max_failures(str(settings.max_failed), 0)
    max_failures(str(settings.warn_failed), 0)
    runs.check_night(settings.night)
    settings.retried()
    if not settings.model:
        raise SettingError("name the model: --model FOLDER, s3://... or models:/name@alias")
    entry.check_access(settings)
    tracker = Tracker(settings.out)
    with lock.locked(tracker.out, settings.lease) as check, Progress() as progress:
        _Night(settings, tracker, check, progress).work()
    return 0


class _Night:
    def __init__(
        self, settings: Settings, tracker: Tracker, check: Callable[[], None], progress: Progress
    ) -> None:
        self.settings, self.tracker, self.out = settings, tracker, tracker.out
        self._check, self._progress = check, progress
        self._started = datetime.datetime.now(datetime.UTC)

    def _watch(self, stage: str, done: int, total: int, failed: int = 0) -> None:
        self._check()
        self._progress(stage, done, total, failed)

    def work(self) -> None:
        with (
            self.tracker.located(self.settings.model) as place,
            self.tracker.run("nightly", asdict(self.settings)) as record,
        ):
            card = read_card(place)
            score.check(card, self.settings)
            record.tags["model_id"] = card.model_id
            left = self._left(card)
            if left:
                self._finish(left, place)
            done = self._due(place, card, record, left)
            self._note(done | {"ended": _now()})

    def _note(self, content: dict[str, Any]) -> None:
        files.write_json(self.out.night(f"{self._started:%Y-%m-%dT%H-%M-%S.%f}"), content)

    def _left(self, card: ModelCard) -> dict[str, Any] | None:
        """What the last night set out to do, if it was killed and can be finished."""
        place = self.out.nights()
        names = files.names(place)
        last: dict[str, Any] = files.read_json(files.join(place, names[-1])) if names else {}
        if "ended" in last or "run_id" not in last:
            return None
        if not files.is_folder(self.out.work(last["run_id"])):
            return None
        if last["model_id"] != card.model_id:
            echo(f"run {last['run_id']} was left unfinished under another model, and is dropped")
            files.remove_folder(self.out.work(last["run_id"]))
            return None
        return last

    def _finish(self, left: dict[str, Any], place: str) -> None:
        """Publish what a killed night has; if that cannot be, tonight's list has its images."""
        echo(f"run {left['run_id']} was left unfinished; finishing it first")
        try:
            self._score(
                place,
                Inventory(left["work_list"]),
                ScoreSettings(**left["settings"]),
                left["night"],
                left["after"],
                left["listed"],
                lambda _: None,
            )
        except lock.LostLock:
            raise
        except (RunError, FileNotFoundError) as error:
            echo(f"run {left['run_id']} cannot be finished: {error}")

    def _due(
        self, place: str, card: ModelCard, record: Record, left: dict[str, Any] | None
    ) -> dict[str, Any]:
        """List, score what is due, and say what came of it."""
        given = self.settings.inventory.removeprefix("file://")
        listed = given or self.out.warehouse()
        if not given:
            sources.take(self.settings, listed, self._progress)
        everything = len(Inventory(listed))
        with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
            taken = os.path.join(folder, "due.parquet")
            found = pending.due(self.out, listed, card.model_id, self.settings.retried(), taken)
            counts = {"new": found.new, "changed": found.changed, "retried": found.retried}
            work = sources.kept(taken, self.out) if found.images else None
        echo(
            f"{everything} images: {found.new} new, {found.changed} changed, "
            f"{found.retried} to be tried again"
        )
        record.metrics |= {"listed": float(everything)} | {k: float(v) for k, v in counts.items()}
        told = {
            "started": self._started.isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "model_id": card.model_id,
            "listed": everything,
            **counts,
        }
        if work is None:
            self._drop(left, "")
            echo("nothing to do: every image has its row under this model")
            return told
        policy = _policy(self.settings)
        told |= {
            "work_list": work.location,
            "settings": asdict(policy),
            "after": list(found.runs),
        }

        def begin(run: runs.Run) -> None:
            told.update(run_id=run.run_id, night=run.night)
            record.tags["run_id"] = run.run_id
            self._drop(left, run.run_id)
            self._note(told)

        totals = self._score(
            place, work, policy, self.settings.night, list(found.runs), everything, begin
        )
        record.metrics |= score.metrics_of(totals)
        told |= {"totals": totals, "warnings": self._warn(told, totals, record)}
        if self.settings.report:
            self._report(str(told["run_id"]), record)
        return told

    def _warn(self, told: dict[str, Any], totals: dict[str, Any], record: Record) -> list[str]:
        """Compare with the nights before, and say what people should look at."""
        run_id = told["run_id"]
        found = drift.drift_of_run(self.out, run_id, told["model_id"])
        location = self.out.drift(run_id)
        parquet.write(location, drift.DRIFT, [found])
        record.files["drift.parquet"] = location
        limits = Limits(str(self.settings.warn_failed), self.settings.warn_drift)
        warnings = concerns(totals, found, limits)
        for number, sentence in enumerate(warnings):
            echo(f"warning: {sentence}")
            record.tags[f"warning_{number}"] = sentence
        record.metrics["warnings"] = float(len(warnings))
        if known := [psi for psi in found["psi"].to_pylist() if psi is not None]:
            record.metrics["max_psi"] = max(known)
        return warnings

    def _drop(self, left: dict[str, Any] | None, run_id: str) -> None:
        """Forget what a killed night left, unless it is what tonight goes on with."""
        if left and left["run_id"] != run_id:
            files.remove_folder(self.out.work(left["run_id"]))

    def _report(self, run_id: str, record: Record) -> None:
        """Make the page about tonight; without it a night is as good."""
        finished, page = run_records.finished(self.out, run_id), self.tracker.page(run_id)
        fetch, settings = self.settings.fetch, ReportSettings()
        try:
            made = report.report(
                self.out, [finished], run_id, settings, fetch, self._progress, page
            )
        except Exception as error:  # whatever it is, the night is published
            remedy = f"python -m jobs.report {run_id} --out {self.out.root} makes it"
            echo(f"warning: there is no report ({type(error).__name__}: {error}); {remedy}")
            return
        record.files["report.html"] = made
        echo(f"report: {made}")

    def _score(
        self,
        place: str,
        work: Inventory,
        policy: ScoreSettings,
        night: str | None,
        after: Sequence[str],
        everything: int,
        begin: Callable[[runs.Run], None],
    ) -> dict[str, Any]:
        """Score a list of images, and publish its table."""
        limit = max_failures(str(self.settings.max_failed), everything)
        with connected(self.settings.cluster):
            model = SharedModel.read(place, work.products())
            memory.check_scoring(model, self.settings.resources)
            run = runs.prepare(work, model, self.out, policy, night, after)
            begin(run)
            with deduplicate.known(self.out, model.card.model_id, policy) as known:
                totals = scoring.score(
                    run,
                    self.settings.fetch,
                    self.settings.resources,
                    str(limit),
                    self._watch,
                    known,
                )
        echo(f"run: {run.run_id}")
        score.print_summary(totals)
        return totals


def _policy(settings: Settings) -> ScoreSettings:
    return ScoreSettings(settings.maps, settings.overlays, settings.chunk_rows)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    entry.start(main)
