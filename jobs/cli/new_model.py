"""A new model, fitted or made of others: check its folder; write, track, print and register it."""

from __future__ import annotations

import math
from dataclasses import replace

from jobs.cli.console import echo
from jobs.cli.detail_seen import detail_seen
from jobs.cli.fit_warnings import FitWarnings
from jobs.tracking import registry
from jobs.tracking.record import Record, title
from jobs.tracking.tracker import Tracker
from ops.detectors.detector import settings_from
from ops.detectors.model_card import ModelCard, ProductCard
from ops.detectors.model_folder import Model, read_card, write_model
from ops.detectors.registry import detector_class
from ops.plain_text import printable
from ops.storage import files, paths
from ops.storage.storage_errors import AlreadyExists
from pipelines.fitting.picture_sizes import Detail
from pipelines.fitting.request import FitRequest

_SHOWN = 100  # products of a new model that are printed


def check_free(
    folder: str, request: FitRequest, grown: Model | None, also_whole: bool = False
) -> None:
    """Refuse a folder with a model that the fit cannot give, before it computes one.

    The same settings may give the same model again. Raises AlreadyExists.
    """
    if not folder or not files.exists(files.join(folder, paths.MODEL_CARD)):
        return
    card = read_card(folder)
    refusal = AlreadyExists(
        f"model {card.model_id} lies at {folder}, and a fit replaces no other model; choose "
        "another --model-folder"
    )
    if card.members or also_whole:
        raise refusal
    same = replace(
        request,
        method=card.method,
        settings=settings_from(detector_class(card.method).Settings, card.settings),
        backbone=card.backbone.configured(),
        # Pictures decide about what is left open.
        input=request.input if request.input.is_open else card.input,
        decode=card.decode,
        joint=card.joint,
        views=card.views,
        holdout=card.fit.get("holdout", request.holdout),
        false_alarm_rate=card.false_alarm_rate,
        region_rate=card.region_false_alarm_rate,
    )
    masked = bool(request.roi or request.ignore) != bool(card.masks)
    if grown or masked or same != request or "grown_from" in card.fit:
        raise refusal


def keep(model: Model, location: str, record: Record, warnings: FitWarnings) -> None:
    """Write a new model, track what it was made of, and print it."""
    write_model(location, model)
    card = model.card
    record.metrics |= _metrics(model)
    record.curves |= _curves(model)
    record.tags |= {f"product_{n}": name for n, name in enumerate(sorted(card.products))}
    record.tags |= {"model_id": card.model_id, "model": location}
    record.tags |= {"input_fit": card.input.fit, "input_size": str(card.input.size)}
    _print_summary(model, location, warnings)
    record.tags |= {f"warning_{n}": each for n, each in enumerate(warnings.sentences)}
    record.metrics["warnings"] = float(len(warnings.sentences))
    record.title = title(record.job, products=card.products, images=card.fit["images"])
    record.description = (
        f"{card.method} fitted on {card.fit['images']:,} good images, {card.fit['held_out']:,} "
        f"more held out for calibration: model {card.model_id}; {len(warnings.sentences):,} "
        "warnings."
    )


def register(model: Model, name: str, alias: str, tracker: Tracker, record: Record) -> None:
    """Register a new model under a name, unless that is empty."""
    if not name or not (registered := tracker.register(model, name, alias, record)):
        return
    echo(f"registered: {registered}")
    if not alias and registered.endswith(f"@{registry.CHALLENGER}"):
        echo(
            "champion stays another model; compare both, then let this one follow: "
            f"python -m jobs.promote {registered} --out {tracker.out}"
        )


def _metrics(model: Model) -> dict[str, float]:
    """Counts and metrics of each product's fit, to track."""
    metrics: dict[str, float] = {}
    for number, (_, card) in enumerate(sorted(model.card.products.items())):
        metrics |= {f"product_{number}.{name}": value for name, value in card.metrics.items()}
        metrics[f"product_{number}.calibration_images"] = sum(card.sizes.values())
        metrics[f"product_{number}.calibration_units"] = len(card.calibration.scores)
    return metrics


def _curves(model: Model) -> dict[str, list[float]]:
    """Values per epoch, named as the metrics that hold their last values."""
    return {
        f"product_{number}.{name}_by_epoch": curve
        for number, (_, card) in enumerate(sorted(model.card.products.items()))
        for name, curve in card.curves.items()
    }


def _print_summary(model: Model, location: str, warnings: FitWarnings) -> None:
    rate = model.card.false_alarm_rate
    products = model.card.products
    for name, card in list(products.items())[:_SHOWN]:
        fitted = describe_fit(card, "tiles" if model.card.input.tiled else "images")
        if mask := model.masks.get(name):
            fitted += f", {mask.share:.1%} of the picture inspected"
        echo(f"{printable(name)}: {fitted}; {describe_calibration(card)}")
        promised = card.calibration.promised_rate(rate)
        if promised is not None and promised > rate:
            needed = math.ceil(1 / rate - 1e-9) - 1
            warnings.add(
                f"{printable(name)}: a false-alarm rate of {rate:g} needs {needed:,} "
                "held-out images, or parts of several; the threshold promises "
                f"{promised:.2g} on average"
            )
    if len(products) > _SHOWN:
        echo(f"{len(products) - _SHOWN:,} more products; model.json names all of them")
    for sentence in detail_seen(_detail_of(model.card)):
        echo(sentence)
    if failures := model.card.fit["failures"]:
        warnings.add(
            f"{model.card.fit['failed']} unreadable images, such as {printable(failures[0])}"
        )
    echo(f"model: {location}")


def _detail_of(card: ModelCard) -> Detail | None:
    """Of the picture of which the least is seen; of an ensemble, by the member that sees most."""
    if card.members:
        seen = filter(None, map(_detail_of, card.members))
        return min(seen, key=lambda detail: detail.patch, default=None)
    found = [Detail.from_metrics(product.fit_metrics) for product in card.products.values()]
    return max(filter(None, found), key=lambda detail: detail.patch, default=None)


def describe_fit(card: ProductCard, kind: str) -> str:
    """What a detector was fitted on, for people: images or tiles, patches, bank and epochs."""
    counts = card.counts
    parts = [f"{counts.images:,} {kind}"]
    if counts.dropped_images:
        parts[0] += f" ({counts.dropped_images:,} of them dropped: features not finite)"
    if counts.patches is not None:
        parts.append(f"{counts.patches:,} patches")
    if counts.bank is not None:
        parts.append(f"bank of {counts.bank:,} patches")
    if card.curves:
        parts.append(f"{max(map(len, card.curves.values())):,} epochs")
    return ", ".join(parts)


def describe_calibration(card: ProductCard) -> str:
    """The lowest false-alarm rate that a threshold can promise, for people."""
    count, images = len(card.calibration.scores), sum(card.sizes.values())
    if not count:
        return "no image held out, so no p-values and no threshold"
    of_parts = f" of {count:,} parts" if count < images else ""
    return (
        f"{images:,} held-out images{of_parts} promise false-alarm rates down to "
        f"{1 / (count + 1):.2g} on average"
    )
