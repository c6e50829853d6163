"""What each worker of a fit does: extract its share of the images, and fit with the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
import torch
from ray.train import DataConfig

from ops.detectors.detector import Detector
from ops.detectors.registry import detector_class
from ops.detectors.score_images import to_images
from ops.distributed import Distributed, Group
from ops.errors import UserError
from ops.features.backbone import Backbone
from ops.images.resize import InputSettings
from pipelines.cluster.resources import Resources
from pipelines.fitting.coordinator import DetectorCheckpoint, Found
from pipelines.fitting.request import DETECTOR

#: The column with an image's number in the fit's list.
ROW = "row"


class WholeShards(DataConfig):
    """Hands every row to some worker, in order.

    Ray Train's own split makes shards equal by leaving rows out; a bank needs them all.
    """

    def configure(
        self,
        datasets: dict[str, Any],
        world_size: int,
        worker_handles: Any,  # noqa: ARG002 - as in the base
        worker_node_ids: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """One iterator per worker and dataset."""
        out: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            copy = dataset.copy(dataset)
            options = self._resolve_execution_options(name)
            options.preserve_order = True
            copy.context.execution_options = options
            for rank, shard in enumerate(copy.streaming_split(world_size, equal=False)):
                out[rank][name] = shard
        return out


def program(config: dict[str, Any]) -> None:
    """Fit the detectors one after the other; all workers fit the same ones in the same order."""
    coordinator, resources, request = config["coordinator"], config["resources"], config["request"]
    if ray.get(coordinator.verdict.remote()):
        return  # the group was restarted after a verdict that another attempt would not change
    torch.set_num_threads(resources.threads)
    state = {name: tensor.clone() for name, tensor in ray.get(config["backbone"]).items()}
    backbone = Backbone(request.backbone, state, resources.device)
    finished = set(ray.get(coordinator.finished.remote()))  # by the group before a restart
    waiting = [detector for detector in config["detectors"] if detector not in finished]
    stream = Stream(resources, coordinator, config["limit"], request.input, waiting)
    group = Distributed()
    for name in waiting:
        detector = detector_class(request.method)(request.settings, backbone)
        detector.product = name
        if group.rank == 0 and name in config["grown"]:
            state, figures = config["grown"][name]
            tensors = {key: tensor.clone() for key, tensor in ray.get(state).items()}
            with stream.refusing(name):
                detector.grow(tensors, figures)
        _add_images(name, detector, stream, group)
        if not _fit(name, detector, coordinator, group):
            return


def _add_images(name: str, detector: Detector, stream: Stream, group: Group) -> None:
    """Collective: take in all images of a detector, on whichever workers they are.

    The stream is in the order of detectors, so a worker that meets the next one knows that its
    share of this one is complete.
    """
    while True:
        mine = stream.detector == name
        if mine:
            with stream.refusing(name):
                detector.add_images(*stream.take())
        if mine and not detector.exchanges:
            continue
        if not int(group.all_reduce(torch.tensor([int(mine)]), "max")):
            return
        if detector.exchanges:
            detector.exchange(group)


def _fit(name: str, detector: Detector, coordinator: Any, group: Group) -> bool:
    """Collective. False on every rank if there is a verdict against the fit."""

    def watch(stage: str, done: int, total: int, failed: int = 0) -> None:  # noqa: ARG001 - as every one
        if group.rank == 0:
            coordinator.progress.remote(stage, done, total)

    refused = torch.tensor([int(bool(ray.get(coordinator.verdict.remote())))])
    if int(group.all_reduce(refused, "max")):
        return False
    try:
        said = detector.fit(group, watch, DetectorCheckpoint(coordinator, name))
    except UserError as error:  # on every rank, as the contract has it
        ray.get(coordinator.refuse.remote(f"{name}: {error}"))
        return False
    if group.rank == 0:
        figures = said.figures | {"map_ceiling": detector.map_ceiling()}
        tensors = {key: tensor.cpu() for key, tensor in detector.state().items()}
        ray.get(
            coordinator.finish.remote(name, Found(figures, said.curves, tensors, said.pictures))
        )
    return True


class Stream:
    """This worker's readable images, in runs of one detector; the ledger hears of every row."""

    def __init__(
        self,
        resources: Resources,
        coordinator: Any,
        limit: int,
        seen: InputSettings,
        waiting: list[str],
    ) -> None:
        self._resources, self._coordinator, self._limit, self._input = (
            resources,
            coordinator,
            limit,
            seen,
        )
        self._runs = (run for run in self._all() if run.detector in waiting)
        self._next = next(self._runs, None)

    @property
    def detector(self) -> str | None:
        """Which detector the next images are for; None at the end."""
        return self._next.detector if self._next else None

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next images (B, 3, H, W), on the device, and their numbers (B,)."""
        assert self._next
        rows = self._next.rows
        self._next = next(self._runs, None)
        images = to_images(rows, self._input, self._resources.device)
        return images, torch.tensor(rows[ROW].to_pylist())

    @contextlib.contextmanager
    def refusing(self, name: str) -> Iterator[None]:
        """What this rank alone finds impossible ends its stream; the vote then ends every rank."""
        try:
            yield
        except UserError as error:
            ray.get(self._coordinator.refuse.remote(f"{name}: {error}"))
            self._next = None

    def _all(self) -> Iterator[_Run]:
        shard: Any = ray.train.get_dataset_shard("images")
        for batch in shard.iter_batches(
            batch_size=self._resources.batch, batch_format="pyarrow", prefetch_batches=1
        ):
            broken = batch.filter(pc.not_equal(batch["status"], "ok"))
            uris, reasons = broken["uri"].to_pylist(), broken["reason"].to_pylist()
            failures = dict(zip(uris, reasons, strict=True))
            told = self._coordinator.extracted.remote(batch[ROW].to_pylist(), failures)
            failed = ray.get(told)
            if failed > self._limit:
                verdict = (
                    f"{failed} images of the fit cannot be read, more than --max_failed allows "
                    f"({self._limit}), such as {next(iter(failures.items()), '')}"
                )
                ray.get(self._coordinator.refuse.remote(verdict))
                return  # the vote before the next fit ends it on every rank
            good = batch.filter(pc.equal(batch["status"], "ok"))
            for detector in dict.fromkeys(good[DETECTOR].to_pylist()):
                yield _Run(detector, good.filter(pc.equal(good[DETECTOR], detector)))


@dataclass(frozen=True)
class _Run:
    detector: str
    rows: pa.Table
