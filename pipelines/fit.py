"""Fitting: Ray Data feeds good images to a Ray Train group, one detector per product."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
import torch
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from ops.backbone import Backbone
from ops.calibration import Calibration
from ops.detecting import to_images
from ops.fetch import FetchSettings
from ops.group import Distributed
from ops.inventory import Inventory
from ops.layout import Out, product_file
from ops.maps import LEVELS, Scale
from ops.method import Gathered
from ops.methods import method_named
from ops.model import Model, ModelCard, ProductCard
from ops.reading import Read
from ops.weights import fingerprint
from pipelines import plan
from pipelines.chain import Chain, batches, drawing
from pipelines.cluster import Slots
from pipelines.ledger import Ledger, ProductNotes
from pipelines.limits import max_failures
from pipelines.reading import Reading
from pipelines.request import FitRequest, NothingToFit, Split, split
from pipelines.shared import SharedModel
from pipelines.watch import Watch

log = logging.getLogger(__name__)
_ROW = "row"


def fit(
    inventory: Inventory,
    request: FitRequest,
    slots: Slots,
    watch: Watch,
    grown: Model | None = None,
) -> Model:
    """Fit one detector per product on the good images of an inventory, then calibrate them.

    A model to grow from lends its backbone, and each product's detector begins with what its own
    had learned. Products without a new image stay as they are; the others are calibrated on newly
    held-out images, as scores of another bank say nothing about this one.
    Raises NothingToFit; DoesNotFit before anything is read, if the nodes cannot hold the fit.
    """
    chosen = split(inventory, request.holdout)
    # Weights are fetched once, here.
    network = Backbone(request.backbone, grown.backbone if grown else None)
    plan.check(plan.of_fit(chosen, request, network, slots))
    backbone = network.state()
    ledger = _fit_products(chosen, request, backbone, slots, watch, grown)
    failures: list[str] = ray.get(ledger.failures.remote())
    found = {product: ray.get(ledger.found.remote(product)) for product in chosen.products}
    figures = {product: found[product][0] for product in found}
    tensors = {product: found[product][1] for product in found}
    ceiling = 4 * max(figure["map_ceiling"] for figure in figures.values()) or 1.0
    ceiling = max(ceiling, grown.card.map_scale.scale * (LEVELS - 1)) if grown else ceiling
    card = ModelCard(
        method=request.method,
        settings=asdict(request.settings),
        backbone=request.backbone,
        backbone_sha256=fingerprint(backbone),
        input=request.input,
        decode=request.decode,
        products=(grown.card.products if grown else {})
        | {
            product: ProductCard(
                file=product_file(product),
                sha256=fingerprint(tensors[product]),
                figures=figures[product],
                calibration=Calibration(()),
            )
            for product in chosen.products
        },
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
    model = Model(card, backbone, (grown.products if grown else {}) | tensors)
    return _calibrated(model, chosen.held_out, request.fetch, slots, watch)


def _lineage(grown: Model) -> dict[str, Any]:
    """The models that this one was grown from, the nearest first, and whose images it rests on."""
    before = grown.card.fit.get("grown_from", [])
    return {
        "grown_from": [grown.card.model_id, *before],
        "images_before": grown.card.fit["images"] + grown.card.fit.get("images_before", 0),
    }


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


def _fit_products(
    chosen: Split,
    request: FitRequest,
    backbone: dict[str, Tensor],
    slots: Slots,
    watch: Watch,
    grown: Model | None,
) -> Any:
    rows = chosen.fit.append_column(_ROW, pa.array(range(len(chosen.fit)), pa.int64()))
    blocks = [rows.slice(i, slots.batch) for i in range(0, len(rows), slots.batch)]
    reading = Reading(Read(request.input, request.decode, request.fetch), slots.batch)
    images = ray.data.from_arrow(blocks).map_batches(
        reading,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=slots.readers,
        max_retries=2,
    )
    ledger: Any = Ledger.remote(len(rows))  # type: ignore[attr-defined]  # added by ray.remote
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as scratch, _watching(ledger, watch):
        TorchTrainer(
            _worker,
            train_loop_config={
                "request": request,
                "products": chosen.products,
                "backbone": ray.put(backbone),
                "grown": {
                    product: (ray.put(state), grown.card.products[product].figures)
                    for product, state in grown.products.items()
                }
                if grown
                else {},
                "ledger": ledger,
                "slots": slots,
                "limit": max_failures(request.max_failed, len(rows)),
            },
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=slots.count(),
                use_gpu=bool(slots.gpus),
                resources_per_worker={"CPU": slots.cpus}
                | ({"GPU": slots.gpus} if slots.gpus else {}),
            ),
            datasets={"images": images},
            dataset_config=WholeShards(),
            run_config=RunConfig(
                name="fit", storage_path=scratch, failure_config=FailureConfig(max_failures=2)
            ),
        ).fit()
    if verdict := ray.get(ledger.verdict.remote()):
        raise NothingToFit(verdict)
    return ledger


class _watching:  # noqa: N801 - reads as a verb in its with statement
    """Asks the ledger twice a second, in a thread, as the trainer keeps this one busy."""

    def __init__(self, ledger: Any, watch: Watch) -> None:
        self._ledger, self._watch = ledger, watch
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(0.5):
            self._watch(*ray.get(self._ledger.watch.remote()))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._watch(*ray.get(self._ledger.watch.remote()))


def _worker(config: dict[str, Any]) -> None:
    """The program of one worker: extract its shard, merge with the others, product by product.

    The stream is in the order of products, so a worker that meets the next product knows that its
    share of the last one is complete. All workers merge the same products in the same order.
    """
    request, slots, ledger = config["request"], config["slots"], config["ledger"]
    if ray.get(ledger.verdict.remote()):
        return  # the group was restarted after a verdict that another attempt would not change
    torch.set_num_threads(slots.threads)
    group = Distributed()
    state = {name: tensor.clone() for name, tensor in ray.get(config["backbone"]).items()}
    backbone = Backbone(request.backbone, state, slots.device)
    kind = method_named(request.method)
    finished = set(ray.get(ledger.finished.remote()))  # by the group before a restart
    waiting = [product for product in config["products"] if product not in finished]
    assert issubclass(kind, Gathered)
    detectors: dict[str, Gathered] = {}

    def watch(stage: str, done: int, of: int) -> None:
        if group.rank == 0:
            ledger.progress.remote(stage, done, of)

    def detector_of(product: str) -> Gathered:
        if product not in detectors:
            detectors[product] = kind(request.settings, backbone)
            if group.rank == 0 and product in config["grown"]:
                state, figures = config["grown"][product]
                tensors = {name: tensor.clone() for name, tensor in ray.get(state).items()}
                detectors[product].grow(tensors, figures)
        return detectors[product]

    def merge(product: str) -> bool:
        """Collective. False on every rank if there is a verdict against the fit."""
        detector = detector_of(product)
        refused = torch.tensor([int(bool(ray.get(ledger.verdict.remote())))])
        if int(group.all_reduce(refused, "max")):
            return False
        try:
            figures = detector.merge(group, watch, ProductNotes(ledger, product))
        except ValueError as error:  # on every rank, as the contract has it
            ray.get(ledger.refuse.remote(f"product {product}: {error}"))
            return False
        if group.rank == 0:
            figures["map_ceiling"] = detector.map_ceiling()
            tensors = {name: tensor.cpu() for name, tensor in detector.state().items()}
            ray.get(ledger.finish.remote(product, figures, tensors))
        del detectors[product]
        return True

    for product, rows in _by_product(slots, ledger, config["limit"]):
        if product not in waiting:
            continue
        while waiting[0] != product:
            if not merge(waiting.pop(0)):
                return
        images = to_images(rows, request.input.size, slots.device)
        detector_of(product).gather(images, torch.tensor(rows[_ROW].to_pylist()))
    for product in waiting:
        if not merge(product):
            return


def _by_product(slots: Slots, ledger: Any, limit: int) -> Iterator[tuple[str, pa.Table]]:
    """This worker's readable images, in runs of one product; the ledger hears of every row."""
    shard: Any = ray.train.get_dataset_shard("images")
    for batch in shard.iter_batches(
        batch_size=slots.batch, batch_format="pyarrow", prefetch_batches=1
    ):
        broken = batch.filter(pc.not_equal(batch["status"], "ok"))
        failures = dict(zip(broken["uri"].to_pylist(), broken["reason"].to_pylist(), strict=True))
        failed = ray.get(ledger.extracted.remote(batch[_ROW].to_pylist(), failures))
        if failed > limit:
            verdict = (
                f"{failed} images of the fit cannot be read, more than --max_failed allows "
                f"({limit}), such as {next(iter(failures.items()), '')}"
            )
            ray.get(ledger.refuse.remote(verdict))
            return  # the next merge ends the fit on every rank
        good = batch.filter(pc.equal(batch["status"], "ok"))
        for product in dict.fromkeys(good["product"].to_pylist()):
            yield product, good.filter(pc.equal(good["product"], product))


def _calibrated(
    model: Model, held_out: pa.Table, fetch: FetchSettings, slots: Slots, watch: Watch
) -> Model:
    """The model with the scores of its held-out images, which the scoring chain gives."""
    if not len(held_out):
        return model
    draw = drawing(model.card, Out(""), "none")
    chain = Chain(SharedModel.put(model), draw, fetch, slots)
    blocks = [held_out.slice(i, slots.batch) for i in range(0, len(held_out), slots.batch)]
    found: dict[str, list[float]] = {
        product: [] for product in set(held_out["product"].to_pylist())
    }
    done = failed = 0
    for rows in batches(chain.stream(ray.data.from_arrow(blocks))):
        for product, score in zip(
            rows["product"].to_pylist(), rows["score"].to_pylist(), strict=True
        ):
            done += 1
            failed += score is None
            if score is not None:
                found[product].append(score)
        watch("calibrate", done, len(held_out), failed)
    products = {
        name: ProductCard(p.file, p.sha256, p.figures, Calibration.of(found[name]))
        if name in found
        else p
        for name, p in model.card.products.items()
    }
    return Model(replace(model.card, products=products), model.backbone, model.products)
