"""List archives into an inventory: one row per image, sorted by product, then address.

python -m jobs.inventory --archive s3://bucket/parts --pattern "{product}/{name}"
python -m jobs.inventory --archive ~/mvtec --layout mvtec --out mvtec.parquet
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.cli import entry, sources
from jobs.cli.console import Progress, echo


@dataclass(frozen=True)
class Settings(sources.Listing):
    """Settings of jobs.inventory."""

    out: str = "inventory.parquet"
    """Where the inventory is written; a path or s3:// URI."""


def main(argv: Sequence[str]) -> int:
    """Take an inventory."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    entry.check_access(settings)
    with Progress() as progress:
        sources.take(settings, settings.out, progress)
    echo(f"inventory: {settings.out}")
    return 0


if __name__ == "__main__":
    entry.start(main)
