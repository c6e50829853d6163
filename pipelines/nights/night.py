"""One night: list the archive, score the pending images, compare with earlier nights, report."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ops.archives.inventory import Inventory
from ops.detectors.model_folder import read_card
from ops.errors import RunError, UserError
from ops.failure import max_failures
from ops.storage import files
from ops.storage.paths import Out
from pipelines.cluster import memory
from pipelines.cluster.connection import connected
from pipelines.cluster.shared_model import SharedModel
from pipelines.nights import other_rates
from pipelines.nights.hooks import NightHooks
from pipelines.nights.pages import NightPages
from pipelines.nights.settings import NightSettings
from pipelines.nights.warnings import NightWarnings
from pipelines.reports import model_fit
from pipelines.scoring import deduplicate, score, verify_content
from pipelines.scoring.resume import resume_or_start
from pipelines.scoring.run import Run
from pipelines.scoring.stream import region_settings
from pipelines.scoring.work_list import WorkList
from pipelines.tables import gone, lock, run_order, run_records, take_inventory
from pipelines.tables.pending import find_pending


class Night:
    """One night over an output folder, whose lock the caller holds."""

    def __init__(
        self, settings: NightSettings, out: Out, model: str, inventory: str, hooks: NightHooks
    ) -> None:
        """`model` is a model folder. Without `inventory` the hooks list the archive."""
        self._settings, self._out, self._model, self._hooks = settings, out, model, hooks
        self._inventory = inventory
        self._card = read_card(model)
        self._model_id = self._card.model_id
        started = datetime.datetime.now(datetime.UTC)
        self._record_location = out.night(run_order.name_of_night(out, started))
        self._warnings = NightWarnings(hooks)
        self._pages = NightPages(out, settings, hooks, self._warnings)
        self._warnings.add(run_order.clock_warning(out, started))
        self.record: dict[str, Any] = {
            "started": started.isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "model_id": self._model_id,
            "model_name": hooks.model_name,
        }

    def run(self) -> list[str]:
        """Run all steps; returns the warnings.

        The record of the night has its end, and its error if it failed. Raises RunError if the
        pending images cannot be scored, and LostLock if another process has taken over the output
        folder.
        """
        self._hooks.tracked.tags["model_id"] = self._model_id
        try:
            self._run()
        except BaseException as error:
            self.record["error"] = self._hooks.describe(error)
            with contextlib.suppress(UserError, OSError):  # the first error counts
                self._end()
            raise
        self._end()
        return self._warnings.sentences

    def _run(self) -> None:
        last = run_records.last_night(self._out)
        interrupted = self._find_interrupted(last)
        if interrupted:
            self._finish(interrupted)
        inventory = self._list_images()
        with contextlib.ExitStack() as cluster:
            differing = self._verify_content(inventory, last, cluster)
            self._process(self._find_pending(inventory, differing), interrupted)

    def _end(self) -> None:
        """Complete the record of the night, and the pages over all nights."""
        self.record["warnings"] = self._warnings.sentences
        self.record["ended"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.write_record()  # which the list of nights reads
        if self._settings.report:
            self._pages.write_overviews(self.record)
        self._warnings.track()
        self.write_record()

    def _process(self, work: WorkList | None, interrupted: Mapping[str, Any] | None) -> None:
        """Score and report what is pending."""
        if work:
            self._warnings.add(model_fit.unknown_products(work.inventory, self._card))
            totals = self._score(work, lambda run: self._begin(run, work, interrupted))
            self._track_totals(totals)
            self._conclude(self.record["run_id"], totals)
        else:
            self._discard(interrupted)
            self._hooks.echo("nothing to do: every image has its row under this model")

    def _find_interrupted(self, last: dict[str, Any]) -> dict[str, Any] | None:
        """The record of the last night if it was killed or failed, and its run can be finished."""
        if ("ended" in last and "error" not in last) or "run_id" not in last:
            return None
        if not files.is_folder(self._out.work(last["run_id"])):
            return None
        if last["model_id"] != self._model_id:
            self._hooks.echo(
                f"run {last['run_id']} was left unfinished under another model; its unfinished "
                "work is deleted"
            )
            self._discard(last)
            return None
        return last

    def _finish(self, interrupted: Mapping[str, Any]) -> None:
        """Finish the run of a killed night. If that fails, its images are pending tonight."""
        run_id = interrupted["run_id"]
        self._hooks.echo(f"run {run_id} was left unfinished; finishing it first")
        try:
            totals = self._score(WorkList.of_record(interrupted))
        except lock.LostLock:
            raise
        except (RunError, FileNotFoundError) as error:
            self._hooks.echo(f"run {run_id} cannot be finished: {error}")
        else:
            self._conclude(run_id, totals)

    def _list_images(self) -> str:
        """The location of tonight's inventory."""
        if self._inventory:
            return self._inventory
        listing = gone.before_listing(self._out, self._hooks.archive)
        self._hooks.take_inventory(self._out.warehouse())
        self.record |= listing
        return self._out.warehouse()

    def _verify_content(
        self, inventory: str, last: Mapping[str, Any], cluster: contextlib.ExitStack
    ) -> list[str]:
        """Ids of unchanged images whose bytes are not the scored ones, found in a sample.

        What the last night found is read again, as it may not have been scored. The cluster that
        this takes stays connected as long as `cluster`.
        """
        settings, hooks = self._settings, self._hooks
        night = settings.night or self.record["started"][:10]
        found = last.get("verified", {}).get("differing", ())
        again = [each["image_id"] for each in found]
        if not (again or settings.verified_share()):
            return []
        rows = verify_content.sample(
            self._out, inventory, self._model_id, night, settings.verified_share(), again
        )
        if not len(rows):
            return []
        cluster.enter_context(connected(settings.cluster))
        verified = verify_content.verify(
            rows, settings.fetch, settings.resources, self._progress_under_lock
        )
        self.record["verified"] = verified._asdict()
        hooks.tracked.metrics |= {
            "verified": float(verified.read),
            "verified_differing": float(len(verified.differing)),
        }
        hooks.echo(
            f"{verified.read} unchanged images were read again, {len(verified.differing)} of them "
            f"differ; {verified.unread} could not be read"
        )
        self._warnings.add(verified.warning)
        return [each["image_id"] for each in verified.differing]

    def _find_pending(self, inventory: str, differing: Sequence[str]) -> WorkList | None:
        """The images to score tonight; None if there are none."""
        settings = self._settings
        with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
            path = os.path.join(folder, "pending.parquet")
            pending = find_pending(
                self._out,
                inventory,
                self._model_id,
                settings.retried_statuses(),
                path,
                differing=differing,
            )
            images = take_inventory.keep(path, self._out) if pending.images else None
        counts = {
            "listed": len(Inventory(inventory)),
            "new": pending.new,
            "changed": pending.changed,
            "retried": pending.retried,
            "differing": pending.differing,
        }
        self._hooks.echo(
            f"{counts['listed']} images: {pending.new} new, {pending.changed} changed, "
            f"{pending.retried} to be tried again"
        )
        if sentence := other_rates.sentence(self._out, self._card, settings.false_alarm_rate):
            self._hooks.echo(sentence)
        self.record |= counts
        self._hooks.tracked.metrics |= {name: float(count) for name, count in counts.items()}
        if images is None:
            return None
        return WorkList(
            images, settings.score_settings(), settings.night, pending.runs, counts["listed"]
        )

    def _score(
        self, work: WorkList, begin: Callable[[Run], None] = lambda _: None
    ) -> dict[str, Any]:
        """Score a work list and publish its table; returns the run's totals.

        `begin` is called before the first image is scored.
        """
        settings, hooks = self._settings, self._hooks
        limit = max_failures(str(settings.max_failed), work.listed)
        with connected(settings.cluster):
            model = SharedModel.read(self._model, work.inventory.products())
            memory.check_scoring(model, settings.resources)
            run = resume_or_start(
                work.inventory,
                model,
                self._out,
                work.settings,
                work.night,
                work.after,
                hooks.model_name,
            )
            begin(run)
            with deduplicate.open_score_cache(
                self._out,
                self._model_id,
                work.settings,
                run.thresholds,
                model.card.views,
                region_settings(model.card, work.settings.regions),
            ) as score_cache:
                totals = score.score(
                    run,
                    settings.fetch,
                    settings.resources,
                    str(limit),
                    hooks.progress,
                    score_cache,
                    hooks.check_lock,
                )
        hooks.echo(f"run: {run.run_id}")
        hooks.print_summary(totals)
        return totals

    def _progress_under_lock(self, stage: str, done: int, total: int, failed: int = 0, /) -> None:
        self._hooks.check_lock()
        self._hooks.progress(stage, done, total, failed)

    def _begin(self, run: Run, work: WorkList, interrupted: Mapping[str, Any] | None) -> None:
        """Record what the next night needs to finish this run, should it be killed."""
        self.record |= {
            "work_list": work.inventory.location,
            "settings": asdict(work.settings),
            "after": list(work.after),
            "run_id": run.run_id,
            "night": run.night,
            "products": sorted(work.inventory.products()),
        }
        self._hooks.tracked.tags["run_id"] = run.run_id
        if interrupted and interrupted["run_id"] != run.run_id:
            self._discard(interrupted)
        self.write_record()

    def _discard(self, interrupted: Mapping[str, Any] | None) -> None:
        """Delete the unfinished work of a killed night."""
        if interrupted:
            files.remove_folder(self._out.work(interrupted["run_id"]))

    def _track_totals(self, totals: dict[str, Any]) -> None:
        self._hooks.track_totals(totals)
        self.record["totals"] = totals

    def _conclude(self, run_id: str, totals: Mapping[str, Any]) -> None:
        """Warn of what is unusual in a published run, and write its report."""
        self._warnings.add_of_run(self._out, run_id, self._card, self._settings, totals)
        if self._settings.report and (location := self._pages.write_report(run_id)):
            self.record["report"] = location

    def write_record(self) -> None:
        """Write the record of the night as it is now."""
        files.write_json(self._record_location, self.record)
