"""The one streaming chain from inventory rows to score rows, and its twin in a single process."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from ops.detectors.model_folder import ModelCard
from ops.detectors.score_images import ScoreImages
from ops.images.content_index import Contents
from ops.images.fetch import FetchSettings
from ops.images.read_images import Read
from ops.results.write_maps import DrawMaps, Policy
from ops.storage.paths import Out
from pipelines.cluster.resources import Resources, offered
from pipelines.cluster.shared_model import SharedModel
from pipelines.cluster.timeouts import Limited, Stalled, limited, step_limit
from pipelines.scoring.chunks import POSITION
from pipelines.scoring.read_stage import OFFSET, Reading, TakeSlices


class _TimedScoreImages(ScoreImages):
    """Detecting that must not take longer than its limit over some rows."""

    def __init__(self, limit: float, *given: Any) -> None:
        self._limit = limit
        super().__init__(*given)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One row out for every row in, in the same order."""
        with limited(self._limit):
            return super().__call__(rows)


@dataclass(frozen=True)
class Chain:
    """fetch + decode (CPU) -> detectors (GPU or CPU) -> maps to PNG (CPU)."""

    model: SharedModel
    draw: DrawMaps
    fetch: FetchSettings
    resources: Resources
    known: Contents | None = None
    """Contents whose rows leave the chain with status `KNOWN`, not scored."""

    @functools.cached_property
    def read(self) -> Read:
        """The reading step, which skips products that the model does not know."""
        card = self.model.card
        return Read(card.input, card.decode, self.fetch, frozenset(card.products), self.known)

    def stream(self, source: Dataset, take: TakeSlices | None = None) -> Dataset:
        """Score rows for rows of `CARRIED` and `offset`, or for the slices that `take` takes.

        Retries are bounded; a block whose retries are used up fails, with all of its rows.
        """
        resources, workers, limit = (
            self.resources,
            self.resources.count(),
            step_limit(self.resources.stall_timeout),
        )
        stream = (
            source.map_batches(
                Reading(self.read, resources.batch, take, limit),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=resources.reader_cpus,
                compute=TaskPoolStrategy(size=resources.reading(workers)),
                max_retries=2,
            )
            .map_batches(
                _TimedScoreImages,
                fn_constructor_args=(limit, *self._detect),
                batch_size=resources.batch,
                batch_format="pyarrow",
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                compute=ActorPoolStrategy(
                    min_size=workers,
                    max_size=max(workers, resources.max_workers),
                    initial_size=workers,
                ),
                # A pool never replaces an actor that may not restart, and would wait for ever once
                # all are gone. What kills its actor again and again, its retries bound.
                max_restarts=-1,
                max_task_retries=2,
            )
            .map_batches(
                Limited(self.draw, limit),
                batch_size=resources.batch,
                batch_format="pyarrow",
                num_cpus=resources.reader_cpus,
                max_retries=2,
            )
        )
        stream.context.execution_no_progress_timeout_s = resources.stall_timeout or -1
        return stream

    def alone(self, rows: pa.Table) -> pa.Table:
        """The same steps, one after the other, in this process."""
        return self.draw(ScoreImages(*self._detect)(self.read(rows)))

    @property
    def _detect(self) -> tuple[SharedModel, str, int, int, bool]:
        """What `ScoreImages` takes."""
        resources = self.resources
        return (
            self.model,
            resources.device,
            resources.threads,
            resources.detector_cache,
            self.draw.overlays,
        )


def drawing(
    card: ModelCard,
    out: Out,
    policy: Policy,
    overlays: bool = False,
    kind: type[DrawMaps] = DrawMaps,
) -> DrawMaps:
    """The last step for a model."""
    rate = card.false_alarm_rate
    return kind(
        model_id=card.model_id,
        input=card.input,
        scale=card.map_scale,
        sigma=float(card.settings["sigma"]),
        thresholds={name: p.calibration.threshold(rate) for name, p in card.products.items()},
        out=out,
        policy=policy,
        overlays=overlays,
    )


def batches(dataset: Dataset) -> Iterator[pa.Table]:
    """What comes out of a stream, as it comes. Raises Stalled if nothing does for too long."""
    stream = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    try:
        for batch in stream:
            yield cast("pa.Table", batch)
    except ExecutionTimeoutError:
        waited = dataset.context.execution_no_progress_timeout_s
        raise Stalled(f"nothing was finished for {waited:g} seconds; {offered()}") from None


def positioned(rows: pa.Table) -> pa.Table:
    """Rename the place in the inventory to what parts call it."""
    names = [
        POSITION if name == OFFSET else name for name in rows.schema.names if name != "position"
    ]
    return rows.drop_columns(["position"]).rename_columns(names)
