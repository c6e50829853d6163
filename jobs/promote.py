"""Make a registered model the champion, or go back to the one before, with a record of it.

python -m jobs.promote models:/nightloupe@challenger --out out --reason "half the false alarms"
python -m jobs.promote models:/nightloupe/3 --out s3://bucket/out --alias champion
python -m jobs.promote models:/nightloupe@champion --out out --back true

A night that has started keeps its model; the next one uses the alias as it is then. --back moves
the alias of the model's name to the version that it had before the last recorded move.
"""

from __future__ import annotations

import datetime
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.cli import entry
from jobs.cli.console import echo
from jobs.cli.user_name import user_name
from jobs.tracking import registry
from jobs.tracking.tracker import Tracker
from ops.errors import SettingError, UserError
from ops.plain_text import printable
from ops.storage import files
from ops.storage.paths import Out


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.promote."""

    model: str = ""
    """The registered model: models:/name@alias or models:/name/version."""
    out: str = "out"
    """The output folder, which keeps the record in promotions/."""
    alias: str = "champion"
    """The alias that is moved to it."""
    back: bool = False
    """Move the alias back to the version that it had before its last recorded move."""
    reason: str = ""
    """Why, for the record."""


def main(argv: Sequence[str]) -> int:
    """Move an alias."""
    settings, _ = entry.parse(Settings, __doc__, argv, words=("model",))
    if not settings.model:
        raise SettingError("name the model: models:/name@alias or models:/name/version")
    if not settings.alias:
        raise SettingError("alias must not be empty, such as champion")
    registry.parsed(settings.model)
    entry.check_access(settings)
    out, tracker = Out(settings.out), Tracker(settings.out)
    with tracker.run("promote", asdict(settings)) as tracked:
        version = tracker.version(settings.model)
        if settings.back:
            name = str(version.name)
            earlier = version_before(out, name, settings.alias)
            version = tracker.version(f"models:/{name}/{earlier}")
        before = tracker.move_alias(version, settings.alias)
        record = _record(settings, version, before)
        number = 1 + len(files.names(out.promotions()))
        stamp = record["at"].replace(":", "-")
        files.write_json(out.promotion(f"{number:08d}-{stamp}"), record)
        tracked.title = f"promote {record['name']} v{record['version']} to {settings.alias}"
        tracked.description = settings.reason
        tracked.tags["model_id"] = record["model_id"]
    was = f"; it was v{before.version}" if before else ""
    named = printable(f"{record['name']} v{record['version']}")
    echo(f"{settings.alias} is now {named}, model {record['model_id']}{was}")
    return 0


def version_before(out: Out, name: str, alias: str) -> str:
    """The version of a model that an alias had before its last recorded move.

    Raises UserError if no move is recorded, or if it had none.
    """
    for file in reversed(files.names(out.promotions())):
        record = files.read_json(files.join(out.promotions(), file))
        if (record["name"], record["alias"]) == (name, alias):
            if record["before"] is None:
                break
            return str(record["before"]["version"])
    raise UserError(
        f"{out.promotions()} records no version that {alias} of {printable(name)} had before; name "
        f"it: python -m jobs.promote models:/{printable(name)}/VERSION"
    )


def _record(settings: Settings, version: Any, before: Any | None) -> dict[str, Any]:
    """What is kept: who moved which alias from where to where, when and why."""
    return {
        "name": str(version.name),
        "alias": settings.alias,
        **registry.identity(version),
        "before": registry.identity(before) if before else None,
        "back": settings.back,
        "reason": settings.reason,
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "who": user_name(),
        "host": socket.gethostname(),
    }


if __name__ == "__main__":
    entry.start(main)
