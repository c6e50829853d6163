"""Fit one detector per product on good images, calibrate them, write and register the model.

python -m jobs.fit --inventory mvtec.parquet --out out --method patchcore
python -m jobs.fit --archive s3://bucket/parts --pattern "{product}/{name}" --out s3://bucket/out
python -m jobs.fit --inventory newer.parquet --out out --grow models:/nightloupe@champion
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from jobs.cli import entry, sources
from jobs.cli.console import Progress, echo
from jobs.tracking.tracker import Tracker
from ops.detectors.detector import settings_from
from ops.detectors.model_folder import Model, ModelCard, write_model
from ops.detectors.registry import DETECTORS, detector_class
from ops.features.backbone import BackboneSettings
from ops.images.decode import DecodeSettings
from ops.images.fetch import FetchSettings
from ops.images.resize import InputSettings
from ops.storage.paths import Out
from pipelines.cluster.failure_limit import max_failures
from pipelines.cluster.resources import Resources, connected
from pipelines.fitting import fit
from pipelines.fitting.request import FitRequest, Select


@dataclass(frozen=True)
class Settings(sources.Listing):
    """Settings of jobs.fit."""

    inventory: str = ""
    """An inventory of jobs.inventory; or name an archive."""
    out: str = "out"
    """The output folder; a path or s3:// URI."""
    model: str = ""
    """The folder of the new model; default: OUT/models/<model_id>."""
    grow: str = ""
    """A model to grow by these images; method, backbone, input and the like are its own."""
    method: str = "patchcore"
    """The detector; its own settings stand under its name."""
    joint: bool = False
    """One detector for all products together; each keeps a calibration of its own."""
    holdout: float = 0.1
    """Share of the good images that calibrates instead of fitting; 0 = no p-values."""
    false_alarm_rate: float = 0.01
    """Share of good images that may be called anomalous."""
    max_failed: int | float | str = "10%"
    """How many images may be unreadable, as a count or share, before the fit ends."""
    name: str = "nightloupe"
    """Name in the model registry; empty = do not register."""
    alias: str = "champion"
    """Alias that the new version gets there."""
    cluster: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else one is started for the job."""
    select: Select = field(default_factory=Select)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    input: InputSettings = field(default_factory=InputSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    resources: Resources = field(default_factory=Resources)


def main(argv: Sequence[str]) -> int:
    """Fit a model."""
    groups = {name: kind.Settings for name, kind in DETECTORS.items()}
    settings, methods = entry.parse(Settings, __doc__, argv, groups)
    detector_class(settings.method)
    sources.check(settings.inventory, settings)
    max_failures(str(settings.max_failed), 0)
    entry.check_access(settings)
    chosen = methods[settings.method]
    out = Out(settings.out)
    tracker = Tracker(settings.out)
    with tracker.run("fit", asdict(settings) | {settings.method: asdict(chosen)}) as record:
        if settings.backbone.weights == "random" and not settings.grow:
            echo("warning: the backbone's weights are random; fine for a trial, not for parts")
        with (
            model_to_grow(settings, tracker) as grown,
            Progress() as progress,
            connected(settings.cluster),
        ):
            inventory = sources.inventory_of(settings.inventory, settings, out, progress)
            request = request_of(settings, chosen, grown)
            model = fit.fit(inventory, request, settings.resources, progress, grown)
        location = settings.model or out.model(model.card.model_id)
        write_model(location, model)
        record.metrics |= _metrics(model)
        record.curves |= _curves(model)
        record.tags |= {f"product_{n}": name for n, name in enumerate(sorted(model.card.products))}
        record.tags |= {"model_id": model.card.model_id, "model": location}
        if grown:
            record.tags["grown_from"] = grown.card.model_id
            echo(f"grown from {grown.card.model_id}, which rests on older images")
        _print_summary(model, location)
        if settings.name:
            registered = tracker.register(model, settings.name, settings.alias, record)
            if registered:
                echo(f"registered: {registered}")
    return 0


def request_of(settings: Settings, chosen: Any, grown: Model | None) -> FitRequest:
    """What the settings ask for; `chosen` are those of the method, unless a model is grown."""
    request = FitRequest(
        method=settings.method,
        settings=chosen,
        backbone=settings.backbone,
        input=settings.input,
        decode=settings.decode,
        fetch=settings.fetch,
        select=settings.select,
        joint=settings.joint,
        holdout=settings.holdout,
        false_alarm_rate=settings.false_alarm_rate,
        max_failed=str(settings.max_failed),
    )
    return _like(request, grown.card) if grown else request


@contextlib.contextmanager
def model_to_grow(settings: Settings, tracker: Tracker) -> Iterator[Model | None]:
    """The model that --grow names, if any."""
    if not settings.grow:
        yield None
        return
    with tracker.opened(settings.grow) as model:
        yield model


def _like(request: FitRequest, card: ModelCard) -> FitRequest:
    """The request with all that must be as in the model that is grown."""
    return replace(
        request,
        method=card.method,
        settings=settings_from(detector_class(card.method).Settings, card.settings),
        backbone=card.backbone,
        input=card.input,
        decode=card.decode,
        joint=card.joint,
    )


def _metrics(model: Model) -> dict[str, float]:
    found: dict[str, float] = {}
    for number, (_, card) in enumerate(sorted(model.card.products.items())):
        found |= {f"product_{number}.{name}": value for name, value in card.figures.items()}
        found[f"product_{number}.calibration_images"] = len(card.calibration.scores)
    return found


def _curves(model: Model) -> dict[str, list[float]]:
    """Named like the metrics; their last values are metrics too."""
    return {
        f"product_{number}.{name}_by_epoch": curve
        for number, (_, card) in enumerate(sorted(model.card.products.items()))
        for name, curve in card.curves.items()
    }


def _print_summary(model: Model, location: str) -> None:
    for name, card in model.card.products.items():
        figures = ", ".join(f"{key} {value:g}" for key, value in card.figures.items())
        echo(f"{name}: {figures}")
        promised = card.calibration.promised_rate(model.card.false_alarm_rate)
        if promised is None:
            echo(f"{name}: no image was held out, so there are no p-values and no threshold")
        elif promised > model.card.false_alarm_rate:
            echo(
                f"{name}: {len(card.calibration.scores)} held-out images can only promise a false "
                f"alarm rate of {promised:.3f}, not {model.card.false_alarm_rate}"
            )
    if failures := model.card.fit["failures"]:
        echo(f"{model.card.fit['failed']} images could not be read, such as {failures[0]}")
    echo(f"model: {location}")


if __name__ == "__main__":
    entry.start(main)
