"""The stages from inventory rows to score rows: read, detect, write maps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import Inventory
from ops.detectors.model_card import ModelCard
from ops.detectors.score_images import ScoreImages
from ops.images.content_index import Contents
from ops.images.read_images import Read
from ops.results.regions import RegionRules, RegionSettings
from ops.results.write_maps import DrawMaps, Policy
from ops.storage.paths import Out
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel
from pipelines.cluster.timeouts import TimedStep, step_timeout, time_limit
from pipelines.scoring.read_stage import LoadSpans, ReadStage


class _TimedScoreImages(ScoreImages):
    """Scoring with a time limit for each batch of images or tiles."""

    def __init__(self, limit: float, *arguments: Any) -> None:
        self._limit = limit
        super().__init__(*arguments)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One row out for every row in, in the same order."""
        if self.tiled:
            return super().__call__(rows)
        with time_limit(self._limit):
            return super().__call__(rows)

    def step(self) -> contextlib.AbstractContextManager[None]:
        """The context of scoring one batch of tiles, or of whole pictures beside them."""
        return time_limit(self._limit) if self.tiled else contextlib.nullcontext()


@dataclass(frozen=True)
class ScoringStream:
    """fetch + decode (CPU) -> detectors (GPU or CPU) -> maps to PNG (CPU).

    With an `inventory` its blocks are those of `span_blocks`; without one they hold the rows, with
    columns `CARRIED` and any others, which pass through.
    """

    model: SharedModel
    draw: DrawMaps
    fetch: FetchSettings
    resources: Resources
    inventory: Inventory | None = None
    known: Contents | None = None
    """Contents that are not scored; their rows come out with status `KNOWN`."""

    @functools.cached_property
    def read(self) -> Read:
        """The reading step, which skips products that the model does not know."""
        card = self.model.card
        products, depths = frozenset(card.products), card.bit_depths
        return Read(
            card.input,
            card.decode,
            self.fetch,
            products,
            self.known,
            depths,
            views=card.views,
            masks=self.model.masks,
            further=card.inputs[1:],
        )

    def apply(self, blocks: Dataset) -> Dataset:
        """Score the blocks' rows on the cluster.

        Retries are bounded: a block whose retries are used up fails, with all of its rows.
        """
        resources, workers = self.resources, self.resources.count()
        limit = step_timeout(resources.stall_timeout)
        load = LoadSpans(self.inventory) if self.inventory else None
        # Readers bound the bytes of whole pictures; batches of rows would join them again.
        together = None if self.model.card.input.tiled else resources.images_per_batch
        stream = (
            blocks.map_batches(
                ReadStage(self.read, resources.images_per_batch, load, limit),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=resources.reader_cpus,
                compute=TaskPoolStrategy(size=resources.max_readers(workers)),
                max_retries=2,
                **resources.reader_options(),
            )
            .map_batches(
                _TimedScoreImages,
                fn_constructor_args=(limit, *self._score_arguments),
                batch_size=together,
                batch_format="pyarrow",
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                compute=ActorPoolStrategy(
                    min_size=workers,
                    max_size=max(workers, resources.max_workers),
                    initial_size=workers,
                ),
                # A pool does not replace an actor that may not restart, and waits for ever once
                # all are gone. `max_task_retries` bounds how often a crashing batch restarts one.
                max_restarts=-1,
                max_task_retries=2,
                **resources.worker_options(),
            )
            .map_batches(
                TimedStep(self.draw, limit),
                batch_size=together,
                batch_format="pyarrow",
                num_cpus=resources.reader_cpus,
                max_retries=2,
                **resources.reader_options(),
            )
        )
        resources.limit(stream.context)
        stream.context.execution_no_progress_timeout_s = resources.stall_timeout or -1
        return stream

    def load(self, block: pa.Table) -> pa.Table:
        """The rows of a block."""
        return LoadSpans(self.inventory)(block) if self.inventory else block

    def run_locally(self, rows: pa.Table) -> pa.Table:
        """Score rows in this process, with the same steps."""
        score = ScoreImages(*self._score_arguments)
        pieces = self.read.pieces(rows) if score.tiled else [self.read(rows)]
        return pa.concat_tables(self.draw(score(piece)) for piece in pieces)

    @property
    def _score_arguments(self) -> tuple[Any, ...]:
        """The arguments of `ScoreImages`."""
        resources = self.resources
        return (
            self.model,
            resources.device,
            resources.threads,
            resources.detector_cache,
            self.draw.overlays,
            resources.images_per_batch,
            self.draw.thresholds,
        )


def draw_step(
    model: SharedModel,
    out: Out,
    policy: Policy,
    overlays: bool = False,
    kind: type[DrawMaps] = DrawMaps,
    regions: RegionSettings | None = None,
    thresholds: Mapping[str, float | None] | None = None,
) -> DrawMaps:
    """The step that writes the maps of a model's scores, and finds `regions` if there are any.

    Images whose scores exceed `thresholds` are anomalous; default: the model's.
    """
    card = model.card
    return kind(
        model_id=card.model_id,
        input=card.input,
        scale=card.map_scale,
        sigma=float(card.settings["sigma"]),
        thresholds=card.thresholds({}) if thresholds is None else thresholds,
        out=out,
        policy=policy,
        overlays=overlays,
        views=card.views,
        masks=model.masks,
        regions=region_rules(card, regions) if regions else RegionRules(),
    )


def region_rules(card: ModelCard, settings: RegionSettings) -> RegionRules:
    """What counts as a region under a model; at the model's rate, unless settings name one."""
    peaks = {name: product.peaks for name, product in card.products.items()}
    return RegionRules.of(peaks, settings.under(card.region_false_alarm_rate))


def region_settings(card: ModelCard, settings: RegionSettings) -> RegionSettings | None:
    """How regions are told under a model; None if it was not calibrated for them."""
    known = any(product.peaks.scores for product in card.products.values())
    return settings.under(card.region_false_alarm_rate) if known else None
