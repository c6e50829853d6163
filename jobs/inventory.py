"""List the images of archives: a Parquet file with one row each, sorted by product, then address.

python -m jobs.inventory --archive s3://bucket/parts --pattern "{product}/{name}"
python -m jobs.inventory --archive ~/mvtec --layout mvtec --output mvtec.parquet
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.cli import entry, sources
from jobs.cli.console import Progress, echo


@dataclass(frozen=True)
class Settings(sources.Listing):
    """Settings of jobs.inventory."""

    output: str = "inventory.parquet"
    """The inventory file to write; a path or s3:// URI."""


def main(argv: Sequence[str]) -> int:
    """Take an inventory."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    entry.check_access(settings)
    with Progress() as progress:
        sources.take(settings, settings.output, progress)
    echo(f"inventory: {settings.output}")
    return 0


if __name__ == "__main__":
    entry.start(main)
