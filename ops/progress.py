"""How a long step reports its progress, independent of how progress is shown."""

from __future__ import annotations

from typing import Protocol


class ProgressCallback(Protocol):
    """Called by a step each time it has finished some of its items."""

    def __call__(self, stage: str, done: int, total: int, failed: int = 0, /) -> None:
        """`done` of `total` items of a stage are finished, `failed` of them without a result.

        A `total` of 0 means that the number of items is not known.
        """
