"""Let old nights go: rows that newer ones superseded, and maps that no row names any more.

python -m jobs.expire --out out --keep-nights 30
python -m jobs.expire --out s3://bucket/out --keep-nights 30 --remove true
python -m jobs.expire --out out --keep-nights 7 --retired MODEL_ID --remove true

Without --remove it only says what would go. The current score of an image never goes.
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
    """How many of the newest nights with tables stay as they are; must be said."""
    retired: str = ""
    """Ids of models, comma-separated, whose old rows go wherever another model has a score."""
    remove: bool = False
    """Remove; default: only say what would go."""
    lease: float = 120.0
    """As in jobs.nightly: the two never work at once."""


def main(argv: Sequence[str]) -> int:
    """Say what is superfluous, or remove it."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    if settings.keep_nights is None:
        raise SettingError("say how many nights stay as they are: --keep-nights 30")
    entry.check_access(settings)
    out = Out(settings.out)
    retired = [word.strip() for word in settings.retired.split(",") if word.strip()]
    with lock.locked(out, settings.lease) as check:
        found = retention.expire(out, settings.keep_nights, retired, settings.remove, check)
    for table in found.tables:
        echo(f"{table.table}: {table.rows - table.kept_rows} of {table.rows} rows")
    rows = sum(table.rows - table.kept_rows for table in found.tables)
    told = f"{rows} rows of {len(found.tables)} tables and {found.maps} maps"
    echo(f"{told} removed" if settings.remove else f"{told} would go; --remove true removes them")
    return 0


if __name__ == "__main__":
    entry.start(main)
