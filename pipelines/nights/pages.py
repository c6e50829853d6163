"""The pages that a night writes. A page that is not written is a warning, and fails no night."""

from __future__ import annotations

from typing import Any

from ops.storage.paths import Out
from pipelines.nights.hooks import NightHooks
from pipelines.nights.settings import NightSettings
from pipelines.nights.warnings import NightWarnings
from pipelines.reports import report, report_index, trends
from pipelines.reports.report_data import ReportSettings
from pipelines.reports.trend_data import TrendSettings
from pipelines.tables import run_records


class NightPages:
    """Writes the report of a night, and the pages over all nights."""

    def __init__(
        self, out: Out, settings: NightSettings, hooks: NightHooks, warnings: NightWarnings
    ) -> None:
        self._out, self._settings, self._hooks, self._warnings = out, settings, hooks, warnings

    def write_report(self, run_id: str) -> str:
        """Write the report of a finished run; returns its location, or nothing if that failed."""
        hooks = self._hooks
        record = run_records.finished(self._out, run_id)
        page = hooks.tracker_page(run_id)
        try:
            location = report.report(
                self._out,
                [record],
                run_id,
                ReportSettings(),
                self._settings.fetch,
                hooks.progress,
                page,
            )
        except Exception as error:  # the table is already published
            self._warnings.add(
                f"the report page was not written ({type(error).__name__}: {error}); "
                f"write it with python -m jobs.report {run_id} --out {self._out.root}"
            )
            return ""
        hooks.tracked.files["report.html"] = location
        hooks.echo(f"report: {location}")
        return location

    def write_overviews(self, night: dict[str, Any]) -> None:
        """Write the list of all nights and, unless this one failed, the trends.

        `night` is its record, which is already written.
        """
        try:
            if "error" not in night:
                trends.write(self._out, TrendSettings(self._settings.trend_nights))
            report_index.write(self._out)
        except Exception as error:
            self._warnings.add(
                f"the pages over all nights were not written ({type(error).__name__}: {error}); "
                f"write them with python -m jobs.trends --out {self._out.root}"
            )
