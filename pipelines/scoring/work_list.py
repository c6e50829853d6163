"""The images that a night's run scores, as its record keeps them for the next night."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ops.archives.inventory import Inventory
from pipelines.scoring.run import ScoreSettings


@dataclass(frozen=True)
class WorkList:
    """The images that a run scores, and what the run's id depends on besides the model."""

    inventory: Inventory
    settings: ScoreSettings
    night: str | None
    after: tuple[str, ...]
    """Ids of the runs that scored some of these addresses last."""
    listed: int
    """Images in the whole archive."""

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> WorkList:
        """The work list of a night, given its record."""
        return cls(
            Inventory(record["work_list"]),
            ScoreSettings.of_record(record["settings"]),
            record["night"],
            tuple(record["after"]),
            record["listed"],
        )
