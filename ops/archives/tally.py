"""What a listing found, and what it left out: counts for its summary and for the inventory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

#: Suffixes, and kinds of images, that are counted each; all others are counted together.
_COUNTED = 100
OTHER_SUFFIXES = "(other)"
NO_SUFFIX = "(none)"
OTHER_KINDS = "(other splits)"
_LABELS = {0: "good", 1: "defective", None: "label unknown"}


@dataclass
class Tally:
    """Counts of a listing."""

    images: int = 0
    masks: int = 0
    unmatched: int = 0
    other_files: int = 0
    problems: int = 0
    shared_parts: int = 0
    """Parts with images to fit on and others, such as images to test on."""
    example_unmatched: str = ""
    example_problem: str = ""
    other_suffixes: Counter[str] = field(default_factory=Counter)
    """Files that are no images by their suffix: suffix -> files."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Everything else that gave no row: reason -> files, members or images."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Images that the inventory has, by split and label: "train, good" -> images."""
    columns: Counter[str] = field(default_factory=Counter)
    """Columns of Parquet files that images were taken from: name -> files."""

    def count_other(self, name: str) -> None:
        """Count a file that is no image by its suffix."""
        self.other_files += 1
        stem, dot, end = name.rpartition("/")[2].rpartition(".")
        suffix = f".{end[:12].lower()}" if dot and stem else NO_SUFFIX
        full = len(self.other_suffixes) >= _COUNTED and suffix not in self.other_suffixes
        self.other_suffixes[OTHER_SUFFIXES if full else suffix] += 1

    def count_kind(self, split: str | None, label: int | None, images: int) -> None:
        """Count images of the inventory by split and label."""
        kind = f"{split or 'no split'}, {_LABELS[label]}"
        full = len(self.kinds) >= _COUNTED and kind not in self.kinds
        self.kinds[OTHER_KINDS if full else kind] += images

    def record(self) -> dict[str, Any]:
        """All counts, as they are stored in the metadata of an inventory."""
        counts = vars(self).items()
        return {k: dict(sorted(v.items())) if isinstance(v, Counter) else v for k, v in counts}
