"""Remove superseded rows of old nights, and maps that no row refers to.

python -m jobs.expire --out out --keep-nights 30
python -m jobs.expire --out s3://bucket/out --keep-nights 30 --remove true
python -m jobs.expire --out out --keep-nights 7 --retired MODEL_ID --remove true

Without --remove it only prints what it would remove. It never removes an image's current score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.cli import entry
from jobs.cli.console import echo
from ops.errors import SettingError
from ops.storage.paths import Out
from pipelines.tables import lock, retention


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.expire."""

    out: str = "out"
    """The output folder that holds the nights."""
    keep_nights: int | None = None
    """How many of the newest nights with tables are kept unchanged; required."""
    retired: str = ""
    """Ids of retired models, comma-separated. Their old rows are removed too where another model
    has scored the image."""
    remove: bool = False
    """Remove rows and maps; default: only print what would be removed."""
    lease: float = 120.0
    """On S3: seconds without a sign of life after which a night is taken for dead. The job does not
    run while a night is running."""


def main(argv: Sequence[str]) -> int:
    """Print or remove what is superseded."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    if settings.keep_nights is None:
        raise SettingError("name the number of nights to keep: --keep-nights 30")
    if settings.keep_nights < 1:
        raise SettingError(f"keep_nights {settings.keep_nights} must be at least 1")
    entry.check_access(settings)
    out = Out(settings.out)
    retired = [word.strip() for word in settings.retired.split(",") if word.strip()]
    with lock.locked(out, settings.lease) as check:
        expired = retention.expire(out, settings.keep_nights, retired, settings.remove, check)
    for table in expired.tables:
        echo(f"{table.table}: {table.rows - table.kept_rows} of {table.rows} rows")
    rows = sum(table.rows - table.kept_rows for table in expired.tables)
    counts = f"{rows} rows of {len(expired.tables)} tables and {expired.maps} maps"
    if settings.remove:
        echo(f"{counts} removed")
    else:
        echo(f"{counts} can be removed; --remove true removes them")
    return 0


if __name__ == "__main__":
    entry.start(main)
