"""What a night needs from the command that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ops.progress import ProgressCallback


class TrackedRun(Protocol):
    """The tracker's record of a night."""

    metrics: dict[str, float]
    tags: dict[str, str]
    files: dict[str, str]
    """Name of an artifact -> the file's location."""


@dataclass(frozen=True)
class NightHooks:
    """What a night needs from the command that runs it."""

    take_inventory: Callable[[str], object]
    """Lists the archive into an inventory at the given location."""
    archive: Sequence[str]
    """The locations that it lists."""
    model_name: str
    """What people call the model; empty if it has no name."""
    tracked: TrackedRun
    tracker_page: Callable[[str], str]
    """The tracker's page of a run id; empty if there is no tracker."""
    track_totals: Callable[[dict[str, Any]], object]
    """Adds a run's totals to the tracker's record."""
    echo: Callable[[str], object]
    """Shows a message."""
    print_summary: Callable[[dict[str, Any]], object]
    """Shows a run's totals."""
    describe: Callable[[BaseException], str]
    """An error as text for records, without secrets."""
    progress: ProgressCallback
    check_lock: Callable[[], None]
    """Raises LostLock if another process has taken over the output folder."""
