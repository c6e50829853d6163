"""Where the workers of a fit say how far they are, and leave what they found."""

from __future__ import annotations

from typing import Any, NamedTuple

import ray

from ops.detectors.detector import Checkpoint


class Found(NamedTuple):
    """A fitted detector as it leaves its workers."""

    figures: dict[str, float]
    curves: dict[str, list[float]]
    tensors: dict[str, Any]
    pictures: dict[str, bytes]


@ray.remote(num_cpus=0)
class FitCoordinator:
    """One actor per fit. What it is told twice counts once, as groups may restart."""

    def __init__(self, total: int) -> None:
        self._progress: tuple[str, int, int] = ("extract", 0, total)
        self._total = total
        self._verdict = ""
        self._seen: set[int] = set()
        self._failures: dict[str, str] = {}
        self._found: dict[str, Found] = {}
        self._notes: dict[str, Any] = {}

    def extracted(self, rows: list[int], failures: dict[str, str]) -> int:
        """Images that went by, and URI and reason of the broken ones; failures so far."""
        self._seen.update(rows)
        self._failures.update(failures)
        self._progress = ("extract", len(self._seen), self._total)
        return len(self._failures)

    def progress(self, stage: str, done: int, of: int) -> None:
        """How far a fit is."""
        self._progress = (stage, done, of)

    def watch(self) -> tuple[str, int, int, int]:
        """Stage, done, of, failed."""
        return (*self._progress, len(self._failures))

    def failures(self) -> list[str]:
        """A sentence per image that could not be read."""
        return [f"{uri}: {reason}" for uri, reason in self._failures.items()]

    def refuse(self, verdict: str) -> None:
        """Say why no attempt at this fit can succeed."""
        self._verdict = self._verdict or verdict

    def verdict(self) -> str:
        """Why the fit cannot succeed; empty while it may."""
        return self._verdict

    def finish(self, detector: str, found: Found) -> None:
        """A fitted detector."""
        self._found[detector] = found
        self._notes.pop(detector, None)

    def note(self, detector: str, found: Any) -> None:
        """How far the fit of a detector is."""
        self._notes[detector] = found

    def noted(self, detector: str) -> Any:
        """What was noted last; None before."""
        return self._notes.get(detector)

    def finished(self) -> list[str]:
        """The detectors that are here."""
        return list(self._found)

    def found(self, detector: str) -> Found:
        """What a fit ended with."""
        return self._found[detector]


class DetectorCheckpoint(Checkpoint):
    """Notes on the fit of one detector, which outlive the workers."""

    def __init__(self, coordinator: Any, detector: str) -> None:
        self._coordinator, self._detector = coordinator, detector

    def read(self) -> Any:
        """From the ledger."""
        return ray.get(self._coordinator.noted.remote(self._detector))

    def write(self, found: Any) -> None:
        """To the ledger, without waiting for it."""
        self._coordinator.note.remote(self._detector, found)
