"""The warnings of a night: on the screen, in the records of night and run, and at the tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ops.detectors.model_card import ModelCard
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.nights.hooks import NightHooks
from pipelines.nights.settings import NightSettings
from pipelines.reports import drift, model_fit, run_summary, trend_alarms
from pipelines.reports.alerts import AlertLimits, find_alerts
from pipelines.reports.part_summary import incomplete_parts


class NightWarnings:
    """Sentences that are shown when they are added, and tracked at the end."""

    def __init__(self, hooks: NightHooks) -> None:
        self._hooks = hooks
        self.sentences: list[str] = []

    def add(self, *sentences: str) -> None:
        """Show and keep warnings; empty ones are none."""
        for sentence in filter(None, sentences):
            self._hooks.echo(f"warning: {sentence}")
            self.sentences.append(sentence)

    def add_of_run(
        self,
        out: Out,
        run_id: str,
        card: ModelCard,
        settings: NightSettings,
        totals: Mapping[str, Any],
    ) -> None:
        """Warn of a finished run: compare it with what its model promises, and with earlier nights.

        Writes its drift table, and all warnings so far into the record of the run.
        """
        tracked, record = self._hooks.tracked, files.read_json(out.run(run_id))
        drift_rows = drift.drift_of_run(out, run_id, card.model_id, views=card.views)
        location = out.drift(run_id)
        parquet.write(location, drift.DRIFT, [drift_rows])
        tracked.files["drift.parquet"] = location
        if indexes := [psi for psi in drift_rows["psi"].to_pylist() if psi is not None]:
            tracked.metrics["max_psi"] = max(indexes)
        limits = AlertLimits(str(settings.warn_failed), settings.warn_drift)
        self.add(*model_fit.of_run(out, record, card, settings.anomalous_share()))
        self.add(*find_alerts(totals, drift_rows, limits))
        self.add(*incomplete_parts(out, record))
        self.add(*self._unlike_before(out, record, settings))
        files.write_json(out.run(run_id), {**record, "warnings": self.sentences})

    def _unlike_before(
        self, out: Out, record: dict[str, Any], settings: NightSettings
    ) -> list[str]:
        """Alarms of products that differ from earlier nights. A failure is a warning, too."""
        try:
            run_summary.summarise(out, record)  # again, now that its drift is known
            return trend_alarms.warnings_of(out, record, settings.trend_nights, settings.warn_trend)
        except Exception as error:  # the table is already published
            return [
                f"products were not compared with earlier nights ({type(error).__name__}: {error})"
            ]

    def track(self) -> None:
        """Add the warnings to the tracker's record."""
        tracked = self._hooks.tracked
        tracked.tags |= {f"warning_{n}": sentence for n, sentence in enumerate(self.sentences)}
        tracked.metrics["warnings"] = float(len(self.sentences))
