"""An actor that collects the progress and the results of a fit's workers."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import ray

from pipelines.fitting.depths import Depths

if TYPE_CHECKING:  # so that the actor starts without torch
    from ops.detectors.detector import Fitted


class DetectorResult(NamedTuple):
    """A fitted detector, as a worker returns it."""

    fitted: Fitted
    tensors: dict[str, Any]
    map_ceiling: float


def failures_of(rows: pa.Table) -> dict[str, str]:
    """Image id -> address and reason. Members of one name in an archive share their address."""
    columns = (rows[name].to_pylist() for name in ("image_id", "uri", "reason"))
    return {id_: f"{uri}: {reason}" for id_, uri, reason in zip(*columns, strict=True)}


class Content(NamedTuple):
    """What was read of a picture of the fit."""

    content_sha256: str
    width: int
    height: int


@ray.remote(num_cpus=0)
class FitCoordinator:
    """One actor per fit. A repeated report counts once, as a restarted fit reads images again."""

    def __init__(self, total: int, depths: Depths) -> None:
        self._progress: tuple[str, int, int] = ("extract", 0, total)
        self._total = total
        self._refusal = ""
        self._depths = depths
        self._sizes: dict[str, set[tuple[int, int]]] = {}
        self._contents: dict[int, Content] = {}
        self._rows: set[int] = set()
        self._failures: dict[str, str] = {}
        self._results: dict[str, DetectorResult] = {}
        self._signs: dict[int, float] = {}
        self._checkpoints: dict[str, Any] = {}

    def sign_of_life(self, rank: int) -> None:
        """Record that a worker lives."""
        self._signs[rank] = time.monotonic()

    def seconds_of_silence(self) -> dict[int, float]:
        """Seconds since the last sign of life of each worker that has started."""
        now = time.monotonic()
        return {rank: now - sign for rank, sign in self._signs.items()}

    def add_images(
        self,
        rows: list[int],
        failures: dict[str, str],
        pictures: dict[int, tuple[str, int, str]],
        sizes: Mapping[str, Collection[tuple[int, int]]] = MappingProxyType({}),
        contents: Mapping[int, Content] = MappingProxyType({}),
    ) -> tuple[int, str]:
        """Record images as read, by row, and `failures_of` them.

        `pictures`: product, bit depth and URI of those that were read, by row. `sizes`: widths and
        heights of pictures, by product. `contents`: by row, for detectors that have `picks`.
        Returns the number of failures so far, and why the fit cannot succeed.
        """
        for row, picture in pictures.items():
            if row not in self._rows:
                self._depths.add(*picture)
        for product, found in sizes.items():
            self._sizes.setdefault(product, set()).update(found)
        self._contents.update(contents)
        self._rows.update(rows)
        self._failures.update(failures)
        self._progress = ("extract", len(self._rows), self._total)
        self.set_refusal(self._depths.refusal())
        return len(self._failures), self._refusal

    def depths(self) -> Depths:
        """The bit depths of the images so far."""
        return self._depths

    def sizes(self) -> dict[str, set[tuple[int, int]]]:
        """Widths and heights of the images so far, by product."""
        return self._sizes

    def contents(self, rows: Collection[int]) -> dict[int, Content]:
        """What was read of some pictures."""
        return {row: self._contents[row] for row in rows}

    def failures(self) -> list[str]:
        """A sentence for each image that could not be read."""
        return list(self._failures.values())

    def set_progress(self, stage: str, done: int, total: int) -> None:
        """Record that `done` of `total` items of a stage are finished."""
        self._progress = (stage, done, total)

    def progress(self) -> tuple[str, int, int, int]:
        """Stage, items done, items in total, failed images: the arguments of a ProgressCallback."""
        return (*self._progress, len(self._failures))

    def set_refusal(self, reason: str) -> None:
        """Record why no attempt at this fit can succeed; the first reason stays."""
        self._refusal = self._refusal or reason

    def refusal(self) -> str:
        """Why the fit cannot succeed; empty if nothing speaks against it."""
        return self._refusal

    def save_checkpoint(self, detector: str, content: Any) -> None:
        """Save the progress of a detector's fit in place of what was saved before."""
        self._checkpoints[detector] = content

    def load_checkpoint(self, detector: str) -> Any:
        """What was saved last for a detector; None if nothing was."""
        return self._checkpoints.get(detector)

    def set_result(self, detector: str, result: DetectorResult) -> None:
        """Record a fitted detector and delete its checkpoint."""
        self._results[detector] = result
        self._checkpoints.pop(detector, None)

    def finished(self) -> list[str]:
        """The names of all fitted detectors."""
        return list(self._results)

    def result(self, detector: str) -> DetectorResult:
        """A fitted detector."""
        return self._results[detector]
