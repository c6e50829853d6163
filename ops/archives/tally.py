"""What a listing found, and what it left out: counts for its summary and for the inventory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

#: Suffixes that are counted each; the files of all others are counted together.
_SUFFIXES = 100
OTHER_SUFFIXES = "(other)"
NO_SUFFIX = "(none)"


@dataclass
class Tally:
    """Counts of a listing."""

    images: int = 0
    masks: int = 0
    unmatched: int = 0
    other_files: int = 0
    problems: int = 0
    example_unmatched: str = ""
    example_problem: str = ""
    other_suffixes: Counter[str] = field(default_factory=Counter)
    """Files that are no images by their suffix: suffix -> files."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Everything else that gave no row: reason -> files, members or images."""
    columns: Counter[str] = field(default_factory=Counter)
    """Columns of Parquet files that images were taken from: name -> files."""

    def count_other(self, name: str) -> None:
        """Count a file that is no image by its suffix."""
        self.other_files += 1
        stem, dot, end = name.rpartition("/")[2].rpartition(".")
        suffix = f".{end[:12].lower()}" if dot and stem else NO_SUFFIX
        full = len(self.other_suffixes) >= _SUFFIXES and suffix not in self.other_suffixes
        self.other_suffixes[OTHER_SUFFIXES if full else suffix] += 1

    def record(self) -> dict[str, Any]:
        """All counts, as they are stored in the metadata of an inventory."""
        counts = vars(self).items()
        return {k: dict(sorted(v.items())) if isinstance(v, Counter) else v for k, v in counts}
