"""Fit one detector per product on good images, calibrate it, write and register the model.

python -m jobs.fit --inventory mvtec.parquet --out out --method patchcore
python -m jobs.fit --archive s3://bucket/parts --pattern "{product}/{name}" --out s3://bucket/out
python -m jobs.fit --inventory newer.parquet --out out --grow models:/nightloupe@champion
python -m jobs.fit --out out --grow models:/nightloupe@champion --labels out
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from jobs.cli import entry, new_model, sources
from jobs.cli.console import Progress, echo
from jobs.cli.fit_warnings import FitWarnings, decided_defects, shrunk, unlabelled
from jobs.tracking.tracker import Tracker
from ops.archives.fetch import FetchSettings
from ops.archives.views import Views
from ops.detectors.detector import settings_from
from ops.detectors.model_card import REGION_RATE, ModelCard
from ops.detectors.model_folder import Model
from ops.detectors.registry import DETECTORS, detector_class
from ops.errors import SettingError, UserError
from ops.failure import max_failures
from ops.features.backbone import BackboneSettings
from ops.images.decode import DecodeSettings
from ops.storage.paths import Out
from pipelines.cluster.connection import connected
from pipelines.cluster.resources import Resources
from pipelines.fitting import fit
from pipelines.fitting.also_whole import FitInput, fit_with_whole
from pipelines.fitting.choose_input import settled
from pipelines.fitting.decided import Decided
from pipelines.fitting.request import FitRequest, Select
from pipelines.tables import lock


@dataclass(frozen=True)
class RegionRate:
    """How regions of anomaly maps are told from the rest."""

    false_alarm_rate: float = REGION_RATE
    """Share of good images that may have any region above the pixel threshold; it sets each
    product's, which jobs.score can change."""


@dataclass(frozen=True)
class Settings(sources.Listing):
    """Settings of jobs.fit."""

    inventory: str = ""
    """An inventory file (see jobs.inventory), instead of an archive."""
    out: str = "out"
    """The output folder; a path or s3:// URI."""
    model_folder: str = ""
    """The folder of the new model, a path or s3:// URI; default: OUT/models/<model_id>."""
    grow: str = ""
    """Grow this model (a folder or models:/name@alias) by the images. The detector, backbone, input
    and decode settings are those of the model."""
    labels: str = ""
    """An output folder with decisions of people (see jobs.review), such as the value of --out.
    Images that they decided to be defects are left out of the fit and its calibration. With --grow,
    those decided to be false alarms are added as good images, and no other images are needed."""
    method: str = "patchcore"
    """The detector: patchcore, padim, spade, differnet, cflow, csflow, fastflow, ssnf or glance.
    The settings of each are in the group of its name; those of the others are ignored."""
    joint: bool = False
    """Fit one detector for all products together. Each product still has its own calibration."""
    views: Views = "pooled"
    """Where paths name {view}: pooled = one detector for all views of a product, separate = one for
    each product and view."""
    roi: str = ""
    """Inspect only what these masks mark: a PNG that is white there, such as masks/{product}.png,
    or a JSON file of polygons. {view} stands for the view with --views separate."""
    ignore: str = ""
    """Inspect everything but what these masks mark, in the same forms."""
    holdout: float = 0.1
    """Share of each product's good images, or of its parts where paths name {part}, that is held
    out for calibration. 0 = no p-values and no thresholds."""
    false_alarm_rate: float = 0.01
    """Share of good images that may be called anomalous; it sets each product's threshold."""
    max_failed: int | float | str = "10%"
    """How many images may be unreadable before the job ends with an error: a count or a share."""
    name: str = "nightloupe"
    """Name of the model in the MLflow registry; empty = do not register."""
    alias: str = ""
    """Alias in the registry that is moved to the new model; default: champion, or challenger if
    champion is another model (see jobs.promote)."""
    fail_on_warning: bool = False
    """Exit with 3 if the job is done and warned."""
    cluster: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else one is started for the job."""
    regions: RegionRate = field(default_factory=RegionRate)
    select: Select = field(default_factory=Select)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    input: FitInput = field(default_factory=lambda: FitInput(size="auto", fit="auto"))
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    resources: Resources = field(default_factory=Resources)

    @property
    def needs_images(self) -> bool:
        """Whether images must be named: not where decided ones alone grow a model."""
        return bool(self.inventory or self.archive) or not (self.grow and self.labels)

    def decided(self) -> Decided | None:
        """What people decided of images. Raises UserError if nothing."""
        return Decided.read(Out(self.labels), self.fetch) if self.labels else None


def main(argv: Sequence[str]) -> int:
    """Fit a model."""
    groups = {name: kind.Settings for name, kind in DETECTORS.items()}
    settings, methods = entry.parse(Settings, __doc__, argv, groups)
    detector_class(settings.method)
    if settings.needs_images:
        sources.check(settings.inventory, settings)
    check_masks(settings)
    check_whole(settings)
    max_failures(str(settings.max_failed), 0)
    entry.check_access(settings)
    method_settings = methods[settings.method]
    decided = settings.decided()
    out = Out(settings.out)
    tracker = Tracker(settings.out)
    with (
        reserved(settings.model_folder) as check_lock,
        tracker.run("fit", asdict(settings) | {settings.method: asdict(method_settings)}) as record,
    ):
        warnings = FitWarnings()
        say = warnings.say
        if settings.backbone.weights == "random" and not settings.grow:
            warnings.add("the backbone's weights are random; use them for trials only")
        if not settings.holdout:
            warnings.add(
                "--holdout 0 holds no image out, so the model has no p-values, no thresholds and "
                "calls no image anomalous; --holdout 0.1 holds out a tenth"
            )
        with model_to_grow(settings, tracker) as grown, Progress() as progress:
            request = request_of(settings, method_settings, grown)
            also_whole = settings.input.also == "whole"
            new_model.check_free(settings.model_folder, request, grown, also_whole)
            with connected(settings.cluster):
                inventory = None
                if settings.needs_images:
                    inventory = sources.inventory_of(settings.inventory, settings, out, progress)
                    warnings.add(unlabelled(inventory))
                    warnings.add("" if decided else decided_defects(inventory, out))
                resources = settings.resources
                if also_whole and inventory is not None:
                    model = fit_with_whole(inventory, request, resources, progress, say, decided)
                else:
                    model = fit.fit(inventory, request, resources, progress, grown, say, decided)
        check_lock()
        if grown:
            record.tags["grown_from"] = grown.card.model_id
            echo(f"grown from model {grown.card.model_id}")
            for sentence in shrunk(grown.card, model.card):
                warnings.add(sentence)
        location = settings.model_folder or out.model(model.card.model_id)
        new_model.keep(model, location, record, warnings)
        new_model.register(model, settings.name, settings.alias, tracker, record)
    return entry.WARNED if warnings.sentences and settings.fail_on_warning else 0


@contextlib.contextmanager
def reserved(folder: str) -> Iterator[Callable[[], None]]:
    """Hold the lock of the folder of a new model; yields a check that raises LostLock.

    A folder named by the id of its model needs none: fits of equal models write equal files.
    Raises Locked if another fit is going to write there.
    """
    if not folder:
        yield lambda: None
        return
    with lock.locked(Out(folder)) as check:
        yield check


def request_of(settings: Settings, method_settings: Any, grown: Model | None) -> FitRequest:
    """The request that the settings describe; a grown model brings its own `method_settings`.

    What the settings leave to the configuration of the backbone is filled in; an input that
    pictures decide about stays open.
    """
    backbone, size = settings.backbone, settings.input.alone
    if not grown:
        backbone = backbone.configured()
        size = settled(size, backbone.configuration.size)
    request = FitRequest(
        method=settings.method,
        settings=method_settings,
        backbone=backbone,
        input=size,
        decode=settings.decode,
        fetch=settings.fetch,
        select=settings.select,
        joint=settings.joint,
        views=settings.views,
        holdout=settings.holdout,
        false_alarm_rate=settings.false_alarm_rate,
        region_rate=settings.regions.false_alarm_rate,
        max_failed=str(settings.max_failed),
        roi=settings.roi,
        ignore=settings.ignore,
    )
    return _as_in_model(request, grown.card) if grown else request


def check_masks(settings: Settings) -> None:
    """Refuse masks for a model that brings its own. Raises SettingError."""
    if settings.grow and (settings.roi or settings.ignore):
        raise SettingError(
            "--grow keeps the inspection masks of the model; leave out --roi and --ignore, or fit "
            "a new model"
        )


def check_whole(settings: Settings) -> None:
    """Refuse what a fit of tiles and whole pictures cannot do. Raises SettingError."""
    if settings.input.also != "whole":
        return
    if settings.grow:
        raise SettingError(
            "--grow keeps the input of the model, so it cannot be combined with --input.also "
            "whole; leave one of them out"
        )
    if not settings.holdout:
        raise SettingError(
            "--input.also whole combines p-values, and --holdout 0 gives none; choose --holdout 0.1"
        )


@contextlib.contextmanager
def model_to_grow(settings: Settings, tracker: Tracker) -> Iterator[Model | None]:
    """The model that --grow names, if any. Raises UserError if it is an ensemble."""
    if not settings.grow:
        yield None
        return
    with tracker.opened(settings.grow) as model:
        if model.card.members:
            raise UserError(
                f"{settings.grow} is an ensemble, whose calibration holds for its members as they "
                "are; grow each member, then make a new one with python -m jobs.ensemble"
            )
        yield model


def _as_in_model(request: FitRequest, card: ModelCard) -> FitRequest:
    """The request, with the settings of the model that is grown where they must be the same."""
    return replace(
        request,
        method=card.method,
        settings=settings_from(detector_class(card.method).Settings, card.settings),
        backbone=card.backbone,
        input=card.input,
        decode=card.decode,
        joint=card.joint,
        views=card.views,
    )


if __name__ == "__main__":
    entry.start(main)
