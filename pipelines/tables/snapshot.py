"""The published tables of an output folder, and whether they stay while they are read."""

from __future__ import annotations

import re

from ops.errors import UserError
from ops.storage import files
from ops.storage.paths import Out

#: Where a published table lies; other files, of systems and editors, are left alone.
TABLE = re.compile(r"(?:.*/)?part-\d+\.parquet", re.ASCII)


class TablesChanged(UserError):
    """Tables were replaced or removed while they were read."""


class Snapshot:
    """The tables that are published now, with their versions."""

    def __init__(self, out: Out, regions: bool = False) -> None:
        """With `regions`, the tables of regions too."""
        self._out = out
        # Scores first: the regions of a run are published before its scores.
        self._versions = self._now(out.scores())
        self._regions = self._now(out.regions()) if regions else {}

    @property
    def tables(self) -> list[str]:
        """The tables of scores."""
        return sorted(self._versions)

    @property
    def regions(self) -> list[str]:
        """The tables of regions; those of unfinished runs may be among them."""
        return sorted(self._regions)

    def _now(self, place: str) -> dict[str, str]:
        listed = files.listing(place) if files.is_folder(place) else ()
        return {
            files.join(place, item.name): item.version
            for item in listed
            if TABLE.fullmatch(item.name)
        }

    def check(self) -> None:
        """Raise TablesChanged if one of them was replaced or removed. New tables do not matter."""
        now = self._now(self._out.scores())
        known = self._versions
        if self._regions:
            now, known = now | self._now(self._out.regions()), known | self._regions
        if any(now.get(table) != version for table, version in known.items()):
            raise TablesChanged(
                f"jobs.expire went on replacing tables in {self._out.scores()} while they were "
                "read; start the same command again when it has ended"
            )
