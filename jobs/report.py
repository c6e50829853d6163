"""Write a report of a night: totals, worst images, changed verdicts, drift and cost in HTML.

python -m jobs.report --out out
python -m jobs.report 2026-11-20-6f0c2b8d1e3a4c55 --out s3://bucket/out --price-per-hour 4.2
python -m jobs.report --night 2026-11-20 --out out --parts 200 --thumbnail 320

The page is one file below OUT/reports/, whose index.html lists all reports. It opens in any browser
and loads nothing from a server. It contains pictures of the images, so anyone who can open the page
can see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.cli import entry
from jobs.cli.console import Progress, echo
from jobs.tracking.tracker import Tracker
from ops.archives.fetch import FetchSettings
from ops.errors import SettingError
from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports import report, report_index
from pipelines.reports.report_data import ReportSettings
from pipelines.scoring.run import check_night
from pipelines.tables import run_records


@dataclass(frozen=True)
class Settings(ReportSettings):
    """Settings of jobs.report."""

    run: str = ""
    """Id of the run; default: the latest finished one."""
    night: str | None = None
    """Report all runs of this date together. If they used several models, only those of the last
    one."""
    out: str = "out"
    """The output folder that jobs.score wrote to."""
    fetch: FetchSettings = field(default_factory=FetchSettings)


def main(argv: Sequence[str]) -> int:
    """Write the report."""
    settings, _ = entry.parse(Settings, __doc__, argv, words=("run",))
    check_night(settings.night)
    entry.check_access(settings)
    out, tracker = Out(settings.out), Tracker(settings.out)
    runs = _runs(out, settings)
    name = settings.night or str(runs[0]["run_id"])
    with tracker.run("report", asdict(settings)) as tracked:
        tracked.tags |= {"run_id": str(runs[-1]["run_id"]), "model_id": runs[-1]["model_id"]}
        with Progress() as progress:
            location = report.report(
                out,
                runs,
                name,
                settings,
                settings.fetch,
                progress,
                tracker.page(str(runs[-1]["run_id"])),
            )
        tracked.files["report.html"] = location
        tracked.metrics["bytes"] = float(files.describe(location).bytes)
    echo(f"report: {location}")
    report_index.write(out)
    return 0


def _runs(out: Out, settings: Settings) -> list[dict[str, Any]]:
    if settings.run and settings.night:
        raise SettingError("name a run or a night, not both")
    if settings.night:
        return run_records.of_night(out, settings.night)
    return [run_records.finished(out, settings.run)]


if __name__ == "__main__":
    entry.start(main)
