"""Fitting: Ray Data feeds good images to a Ray Train group, one detector per product."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from ops.detectors.detector import FitCounts
from ops.detectors.model_folder import Model, ModelCard, ProductCard
from ops.features.backbone import Backbone
from ops.features.weights import fingerprint
from ops.images.failure import max_failures
from ops.images.fetch import FetchSettings
from ops.images.inventory import Inventory
from ops.images.read_images import Read
from ops.progress import ProgressCallback
from ops.results.anomaly_map import LEVELS, Scale
from ops.results.calibration import Calibration
from ops.results.write_maps import DrawSketches, sheet
from ops.storage.paths import HELD_OUT, JOINT, Out, picture_file, product_file
from pipelines.cluster.isolate import process_rows
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel
from pipelines.fitting import plan, quarantine
from pipelines.fitting.coordinator import DetectorResult, FitCoordinator
from pipelines.fitting.interruptible import interruptible_fit
from pipelines.fitting.request import ALL, FitRequest, NothingToFit, Split, split
from pipelines.fitting.worker import ROW, WholeShards, program
from pipelines.scoring.read_stage import ReadStage
from pipelines.scoring.stream import ScoringStream, draw_step

log = logging.getLogger(__name__)
#: How many held-out images of a product people are shown, and of how many products.
_SKETCHES, _SHEETS = 6, 100


def fit(
    inventory: Inventory,
    request: FitRequest,
    resources: Resources,
    watch: ProgressCallback,
    grown: Model | None = None,
) -> Model:
    """Fit one detector per product, or one for all, on good images, then calibrate each product.

    A model to grow from lends its backbone, and each detector begins with what its own had learned.
    Detectors without a new image stay as they are; products of the others are calibrated on newly
    held-out images, as scores of another bank say nothing about this one.
    Raises NothingToFit; NotEnoughMemory before anything is read, if the nodes cannot hold the fit.
    """
    chosen = split(inventory, request)
    # Weights are fetched once, here.
    network = Backbone(request.backbone, grown.backbone if grown else None)
    plan.check(plan.of_fit(chosen, request, network, resources))
    backbone = network.state()
    coordinator = _fit_detectors(chosen, request, backbone, resources, watch, grown)
    failures: list[str] = ray.get(coordinator.failures.remote())
    results = {name: ray.get(coordinator.result.remote(name)) for name in chosen.detectors}
    ceiling = 4 * max(result.map_ceiling for result in results.values()) or 1.0
    ceiling = max(ceiling, grown.card.map_scale.scale * (LEVELS - 1)) if grown else ceiling
    cards, tensors = _cards(chosen, request.joint, results, grown)
    card = ModelCard(
        method=request.method,
        settings=asdict(request.settings),
        backbone=request.backbone,
        backbone_sha256=fingerprint(backbone),
        input=request.input,
        decode=request.decode,
        products=cards,
        # Two digits: a scale must not depend on the last bit of a sum.
        map_scale=Scale(0.0, float(f"{ceiling:.1e}") / (LEVELS - 1)),
        false_alarm_rate=request.false_alarm_rate,
        fit={
            "holdout": request.holdout,
            "images": len(chosen.fit),
            "held_out": len(chosen.held_out),
            "failed": len(failures),
            "failures": sorted(failures)[:100],
        }
        | (_lineage(grown) if grown else {}),
    )
    pictures = {
        picture_file(cards[name].file, kind): picture
        for name in chosen.products
        for kind, picture in results[ALL if request.joint else name].fitted.pictures.items()
    }
    model = Model(card, backbone, tensors, pictures)
    return _calibrated(model, chosen.held_out, request.fetch, resources, watch)


def _cards(
    chosen: Split, joint: bool, results: dict[str, DetectorResult], grown: Model | None
) -> tuple[dict[str, ProductCard], dict[str, dict[str, Tensor]]]:
    """Cards, not calibrated yet, and tensors of all products, those of a grown model included."""
    cards = dict(grown.card.products) if grown else {}
    tensors = dict(grown.products) if grown else {}
    hashes = {detector: fingerprint(result.tensors) for detector, result in results.items()}
    # A joint detector is a new one for every product, whichever of them has new images.
    for product in dict.fromkeys([*(cards if joint else ()), *chosen.products]):
        detector = ALL if joint else product
        result = results[detector]
        cards[product] = ProductCard(
            file=JOINT if joint else product_file(product),
            sha256=hashes[detector],
            counts=result.fitted.counts,
            fit_metrics=result.fitted.fit_metrics | {"map_ceiling": result.map_ceiling},
            calibration=Calibration(()),
            curves=result.fitted.curves,
        )
        tensors[product] = result.tensors
    return cards, tensors


def _lineage(grown: Model) -> dict[str, Any]:
    """The models that this one was grown from, the nearest first, and whose images it rests on."""
    before = grown.card.fit.get("grown_from", [])
    return {
        "grown_from": [grown.card.model_id, *before],
        "images_before": grown.card.fit["images"] + grown.card.fit.get("images_before", 0),
    }


def _fit_detectors(
    chosen: Split,
    request: FitRequest,
    backbone: dict[str, Tensor],
    resources: Resources,
    watch: ProgressCallback,
    grown: Model | None,
) -> Any:
    rows = chosen.fit.append_column(ROW, pa.array(range(len(chosen.fit)), pa.int64()))
    read = Read(request.input, request.decode, request.fetch)
    config = {
        "request": request,
        "detectors": chosen.detectors,
        "backbone": ray.put(backbone),
        "grown": _earlier_fits(grown) if grown else {},
        "resources": resources,
        "limit": max_failures(request.max_failed, len(rows)),
    }
    try:
        return _attempt(rows, {}, read, resources, config, watch)
    except ray.train.TrainingFailedError:
        if not (
            find_crashing_images := quarantine.find_crashing_images(read, rows, resources, watch)
        ):
            raise
        log.warning(
            "%d images kill whoever reads them; they are left out", len(find_crashing_images)
        )
        rows = rows.filter(pc.invert(pc.is_in(rows["uri"], pa.array(list(find_crashing_images)))))
        return _attempt(rows, find_crashing_images, read, resources, config, watch)


def _attempt(
    rows: pa.Table,
    failures: dict[str, str],
    read: Read,
    resources: Resources,
    config: dict[str, Any],
    watch: ProgressCallback,
) -> Any:
    """Fit on rows; returns the ledger, which knows of earlier failures. Raises NothingToFit."""
    blocks = [rows.slice(i, resources.batch) for i in range(0, len(rows), resources.batch)]
    images = ray.data.from_blocks(blocks or [rows]).map_batches(
        ReadStage(read, resources.batch),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=resources.reader_cpus,
        max_retries=2,
    )
    coordinator: Any = FitCoordinator.remote(len(rows))  # type: ignore[attr-defined]  # added by ray.remote
    ray.get(coordinator.add_images.remote([], failures))
    with (
        tempfile.TemporaryDirectory(prefix="nightloupe-") as scratch,
        _reporting(coordinator, watch),
    ):
        trainer = TorchTrainer(
            program,
            train_loop_config=config | {"coordinator": coordinator},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.count(),
                use_gpu=bool(resources.gpus),
                resources_per_worker={"CPU": resources.cpus}
                | ({"GPU": resources.gpus} if resources.gpus else {}),
            ),
            datasets={"images": images},
            dataset_config=WholeShards(),
            run_config=RunConfig(
                name="fit", storage_path=scratch, failure_config=FailureConfig(max_failures=2)
            ),
        )
        interruptible_fit(trainer)
    if refusal := ray.get(coordinator.refusal.remote()):
        raise NothingToFit(refusal)
    return coordinator


def _earlier_fits(model: Model) -> dict[str, tuple[Any, FitCounts]]:
    """State (an object reference) and counts of each detector of a model, by its name in a fit."""
    named = {ALL if model.card.joint else product: product for product in model.products}
    return {
        detector: (ray.put(model.products[product]), model.card.products[product].counts)
        for detector, product in named.items()
    }


@contextlib.contextmanager
def _reporting(coordinator: Any, progress: ProgressCallback) -> Iterator[None]:
    """Report progress twice a second, in a thread, because the trainer blocks this one."""
    ended = threading.Event()

    def report() -> None:
        progress(*ray.get(coordinator.progress.remote()))

    def report_until_ended() -> None:
        while not ended.wait(0.5):
            report()

    thread = threading.Thread(target=report_until_ended, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        report()


def _calibrated(
    model: Model,
    held_out: pa.Table,
    fetch: FetchSettings,
    resources: Resources,
    watch: ProgressCallback,
) -> Model:
    """The model with the scores of its held-out images, which the scoring chain gives."""
    if not len(held_out):
        return model
    draw = draw_step(model.card, Out(""), "none", overlays=True, kind=DrawSketches)
    stream = ScoringStream(SharedModel.put(model), draw, fetch, resources)
    products = sorted(set(held_out["product"].to_pylist()))
    found = {name: _HeldOut([], []) for name in products}
    shown = set(products[:_SHEETS])
    done = failed = 0
    for rows in process_rows(stream, held_out):
        for row in rows.to_pylist():
            done += 1
            failed += row["score"] is None
            if row["score"] is not None:
                found[row["product"]].add(row, row["product"] in shown)
        watch("calibrate", done, len(held_out), failed)
    cards = {
        name: replace(p, calibration=Calibration.of(found[name].scores)) if name in found else p
        for name, p in model.card.products.items()
    }
    sheets = {
        picture_file(product_file(name), HELD_OUT): sheet(kept.worst)
        for name, kept in found.items()
        if kept.highest
    }
    card = replace(model.card, products=cards)
    return replace(model, card=card, pictures=model.pictures | sheets)


class _HeldOut(NamedTuple):
    """What is kept of a product's held-out images: all scores, and sketches of the highest."""

    scores: list[float]
    highest: list[tuple[float, str, bytes]]

    def add(self, row: dict[str, Any], shown: bool) -> None:
        self.scores.append(row["score"])
        if not shown:
            return
        self.highest.append((-row["score"], row["image_id"], row["sketch"]))
        self.highest.sort()
        del self.highest[_SKETCHES:]

    @property
    def worst(self) -> list[bytes]:
        return [sketch for _, _, sketch in self.highest]
