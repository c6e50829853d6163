"""Fit a model: Ray Data feeds good images to the workers of Ray Train, then it is calibrated."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
from ray.data import TaskPoolStrategy
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from ops.archives.inventory import Inventory
from ops.detectors.detector import FitCounts
from ops.detectors.model_folder import Model
from ops.detectors.network_licence import given_licence
from ops.distributed import backend
from ops.failure import max_failures
from ops.features.backbone import Backbone
from ops.images.read_images import Read
from ops.progress import ProgressCallback
from pipelines.cluster.reservation import Reserved, reserved_for_fit
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import put
from pipelines.fitting import plan, quarantine
from pipelines.fitting.alignment import misplaced, placement_matters
from pipelines.fitting.answers import ask, report_progress
from pipelines.fitting.calibrate import calibrate
from pipelines.fitting.choose_input import choose_input
from pipelines.fitting.coordinator import FitCoordinator
from pipelines.fitting.decided import Decided, choose
from pipelines.fitting.depths import Depths
from pipelines.fitting.heartbeat import Watch
from pipelines.fitting.inspection import masks_of
from pipelines.fitting.interruptible import interruptible_fit
from pipelines.fitting.new_model import found_by, new_model
from pipelines.fitting.picture_sizes import PictureSizes, read_sizes_apart
from pipelines.fitting.request import ALL, FitRequest, NothingToFit, Split
from pipelines.fitting.whole_shards import WholeShards
from pipelines.fitting.worker import program
from pipelines.scoring.read_stage import ReadStage

log = logging.getLogger(__name__)
_RESTARTS = 2  # of the workers of a fit, before images that crash them are looked for


def fit(
    inventory: Inventory | None,
    request: FitRequest,
    resources: Resources,
    progress: ProgressCallback,
    earlier: Model | None = None,
    say: Callable[[str], object] = log.info,
    decided: Decided | None = None,
) -> Model:
    """Fit one detector per product, or a joint one, on good images, then calibrate each product.

    To grow a model, pass it as `earlier`: it gives the backbone and the states that detectors start
    from. A detector without new images stays as it is. All others are calibrated anew, because
    scores of another bank cannot be compared: on the images held out before, and on new ones. What
    people `decided`: see `decided.choose`. An input that is left open is chosen from a few
    pictures. `say` is told what it is and costs, and of pictures that lie too far apart; warnings
    begin with "warning: ".
    Raises NothingToFit, Stalled, and NoRoom; raises NotEnoughMemory before any image is read, if
    the nodes cannot hold the fit.
    """
    chosen, decisions, of_decisions = choose(inventory, request, earlier, decided)
    masks = masks_of(chosen, request, earlier)
    request = replace(request, masks=masks.by_detector)
    licence = earlier.licence if earlier else given_licence(request.backbone.licence)
    # Pretrained weights are downloaded here, once.
    network = Backbone(request.backbone.emulated, earlier.backbone if earlier else None)
    placed = placement_matters(request)
    sizes = PictureSizes({})
    if placed or request.input.tiled or request.input.is_open:
        sizes = read_sizes_apart(chosen, request, placed)
    request, sentences = choose_input(request, network, sizes)
    planned = plan.of_fit(chosen, request, network, resources, sizes)
    for sentence in [*of_decisions, *sentences, *misplaced(sizes, request, planned.layers)]:
        say(sentence)
    plan.check(planned)
    backbone = network.state()
    with reserved_for_fit(resources) as (held, turn):
        # It may have fewer workers.
        planned = plan.of_fit(chosen, request, network, held, sizes)
        plan.check(planned)
        coordinator = _fit_detectors(
            chosen, request, backbone, held, planned.gpu, turn.close, progress, earlier
        )
    found = found_by(coordinator, chosen, request, planned, earlier)
    del coordinator  # its actor ends, and with it another copy of all tensors
    for sentence in found.depths.warnings():
        log.warning("%s", sentence)
    model = new_model(chosen, request, backbone, found, earlier, decisions, masks, licence)
    return calibrate(model, chosen.held_out, request.fetch, resources, progress)


def _fit_detectors(
    chosen: Split,
    request: FitRequest,
    backbone: dict[str, Tensor],
    resources: Reserved,
    gpu: plan.GpuNeeds,
    on_start: Callable[[], object],
    progress: ProgressCallback,
    earlier: Model | None,
) -> Any:
    """Fit all detectors, without images that crash every process that reads them.

    Returns the coordinator, which holds the results. Raises NothingToFit.
    """
    rows = chosen.fit
    before = earlier.card.products if earlier else {}
    read = Read(request.input, request.decode, request.fetch, masks=request.masks)
    config = {
        "request": request,
        "detectors": chosen.detectors,
        "backbone": put(backbone),
        "earlier_fits": _earlier_fits(earlier) if earlier else {},
        "earlier_depths": {p: card.bit_depths for p, card in before.items()},
        "resources": resources,
        "gpu": gpu,
        "limit": max_failures(request.max_failed, len(rows)),
    }
    try:
        return _attempt(rows, {}, read, resources, on_start, config, progress)
    except ray.train.TrainingFailedError:
        crashing = quarantine.find_crashing_images(read, rows, resources, progress)
        if not crashing:
            raise
        log.warning(
            "%d images crash every process that reads them; they are left out", len(crashing)
        )
        rows = rows.filter(pc.invert(pc.is_in(rows["image_id"], pa.array(list(crashing)))))
        return _attempt(rows, crashing, read, resources, on_start, config, progress)


def _attempt(
    rows: pa.Table,
    failures: dict[str, str],
    read: Read,
    resources: Reserved,
    on_start: Callable[[], object],
    config: dict[str, Any],
    progress: ProgressCallback,
) -> Any:
    """Fit on rows; returns the coordinator. `failures` gives the reasons of images left out before.

    `on_start` is called once all workers have started. Raises NothingToFit, and Stalled.
    """
    blocks = [
        rows.slice(i, resources.images_per_batch)
        for i in range(0, len(rows), resources.images_per_batch)
    ]
    images = ray.data.from_blocks(blocks or [rows]).map_batches(
        ReadStage(read, resources.images_per_batch),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=resources.reader_cpus,
        compute=TaskPoolStrategy(size=resources.readers),
        max_retries=2,
        **resources.reader_options(),
    )
    coordinator: Any = FitCoordinator.remote(  # type: ignore[attr-defined]  # added by ray.remote
        len(rows), Depths(read.decode.bit_depth, config["earlier_depths"])
    )
    coordinator.add_images.remote([], failures, {})
    with (
        tempfile.TemporaryDirectory(prefix="nightloupe-") as scratch,
        report_progress(coordinator, progress),
    ):
        trainer = TorchTrainer(
            program,
            train_loop_config=config | {"coordinator": coordinator},
            torch_config=TorchConfig(backend=backend(resources.gpus)),
            scaling_config=ScalingConfig(
                num_workers=resources.count(),
                use_gpu=bool(resources.gpus),
                resources_per_worker={"CPU": resources.cpus}
                | ({"GPU": resources.gpus} if resources.gpus else {}),
            ),
            datasets={"images": images},
            dataset_config=WholeShards(),
            run_config=RunConfig(
                name="fit",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=_RESTARTS),
            ),
        )
        interruptible_fit(trainer, Watch(coordinator, resources, on_start))
    if refusal := ask(coordinator.refusal):
        raise NothingToFit(refusal)
    return coordinator


def _earlier_fits(model: Model) -> dict[str, tuple[Any, FitCounts]]:
    """State (an object reference) and counts of each detector of a model, by its name in a fit."""
    products = {ALL if model.card.joint else product: product for product in model.products}
    return {
        detector: (put(model.products[product]), model.card.products[product].counts)
        for detector, product in products.items()
    }
