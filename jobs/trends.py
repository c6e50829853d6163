"""Write the page about all nights: scores, verdicts, failures, drift, decisions of each product.

python -m jobs.trends --out out
python -m jobs.trends --out s3://bucket/out --nights 365 --products 100

Writes OUT/reports/trends.html, and OUT/reports/index.html, which lists all reports. jobs.nightly
writes both at the end of each night.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.cli import entry
from jobs.cli.console import echo
from ops.storage.paths import Out
from pipelines.reports import report_index, trends
from pipelines.reports.trend_data import TrendSettings


@dataclass(frozen=True)
class Settings(TrendSettings):
    """Settings of jobs.trends."""

    out: str = "out"
    """The output folder that holds the nights."""


def main(argv: Sequence[str]) -> int:
    """Write both pages."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    entry.check_access(settings)
    out = Out(settings.out)
    echo(f"trends: {trends.write(out, settings)}")
    echo(f"index: {report_index.write(out)}")
    return 0


if __name__ == "__main__":
    entry.start(main)
