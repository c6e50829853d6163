"""The card of a model: everything about it except its tensors, as `model.json` holds it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ops.archives.layouts import composed, forms
from ops.archives.views import Views
from ops.detectors.detector import Detector, FitCounts, settings_from
from ops.detectors.registry import detector_class
from ops.errors import UserError
from ops.features.backbone import Backbone, BackboneSettings
from ops.images.decode import DecodeSettings
from ops.images.resize import InputSettings
from ops.results.anomaly_map import Scale
from ops.results.calibration import Calibration
from ops.results.combination import Position
from ops.results.part_calibration import PartCalibration
from ops.storage import paths

FORMAT = "nightloupe model 1"
#: Share of good images that may have a region, unless a fit or a run is told another one.
REGION_RATE = 0.01


def versions() -> dict[str, str]:
    """Versions of the software that scores could depend on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": importlib.metadata.version("torchvision"),
        "numpy": np.__version__,
    }


@dataclass(frozen=True)
class ProductCard:
    """One product's detector: file and hash of its tensors, its fit and its calibration.

    Products of a joint model share one detector and name the same file, `paths.JOINT`.
    """

    file: str
    sha256: str
    counts: FitCounts
    fit_metrics: dict[str, float]
    calibration: Calibration
    curves: dict[str, list[float]] = field(default_factory=dict)
    bit_depths: dict[str, int] = field(default_factory=dict)
    """Number of images of the fit by their bit depth."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Number of held-out images by their `WIDTHxHEIGHT` in pixels."""
    peaks: Calibration = field(default_factory=lambda: Calibration(()))
    """As `calibration`, of the largest value of each map, by which regions are told and judged."""
    member_peaks: tuple[Position, ...] = ()
    """Of an ensemble: where the peaks of each member's maps lie, over the held-out images."""

    @property
    def metrics(self) -> dict[str, float]:
        """Counts and metrics of the fit by name, to log."""
        return self.counts.as_metrics() | self.fit_metrics

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ProductCard:
        """A card from its content in model.json."""
        values = {
            "counts": FitCounts(**content["counts"]),
            "calibration": Calibration(tuple(content["calibration"]["scores"])),
            "peaks": Calibration(tuple(content.get("peaks", {}).get("scores", ()))),
            "member_peaks": tuple(Position(*peaks) for peaks in content.get("member_peaks", ())),
        }
        return cls(**{**content, **values})


@dataclass(frozen=True)
class ModelCard:
    """Everything about a model except its tensors: the content of `model.json`."""

    method: str
    settings: dict[str, Any]
    backbone: BackboneSettings
    backbone_sha256: str
    input: InputSettings
    decode: DecodeSettings
    products: dict[str, ProductCard]
    map_scale: Scale
    false_alarm_rate: float
    fit: dict[str, Any]
    versions: dict[str, str] = field(default_factory=versions)
    network: dict[str, Any] = field(default_factory=dict)
    """What `network_card` says of the backbone. No score depends on it."""
    views: Views = "pooled"
    """With separate views the keys of `products` name detectors, see `ops.archives.views`."""
    parts: dict[str, PartCalibration] = field(default_factory=dict)
    """Calibrations of the parts of several images, by product."""
    region_false_alarm_rate: float = REGION_RATE
    """Share of good images that may have a region; it sets the pixel thresholds."""
    masks: dict[str, str] = field(default_factory=dict)
    """Hashes of inspection masks, by detector."""
    members: tuple[ModelCard, ...] = ()
    """Of an ensemble, which has no detectors of its own; `backbone` is then its first member's."""

    #: The id in the file. The hash of a card that was read may differ from it, because settings
    #: that the file lacks are filled in.
    written_id: str = field(default="", compare=False)

    @property
    def model_id(self) -> str:
        """The hash of the card, by which equal models have equal ids."""
        return self.written_id or identity(self.to_json())

    def rates(self, others: Mapping[str, float]) -> dict[str, float]:
        """The false-alarm rate of each product: that of `others`, or else the model's."""
        return {name: others.get(name, self.false_alarm_rate) for name in self.products}

    def thresholds(self, rates: Mapping[str, float]) -> dict[str, float | None]:
        """The score above which an image is anomalous, by product, at other or the model's rates.

        None without held-out images. Raises SettingError for a rate that is not between 0 and 1.
        """
        return {
            name: self.products[name].calibration.threshold(rate)
            for name, rate in self.rates(rates).items()
        }

    @property
    def joint(self) -> bool:
        """Whether all products share one detector."""
        return any(product.file == paths.JOINT for product in self.products.values())

    @property
    def bit_depths(self) -> dict[str, frozenset[int]]:
        """Bit depths of the images of the fit, by product."""
        return {name: frozenset(map(int, card.bit_depths)) for name, card in self.products.items()}

    @property
    def inputs(self) -> tuple[InputSettings, ...]:
        """How pictures are read: the model's own input, then those of members that differ."""
        # Exposure is normalised when an input is scored.
        theirs = (replace(member.input, exposure=self.input.exposure) for member in self.members)
        return tuple(dict.fromkeys((self.input, *theirs)))

    def to_json(self) -> dict[str, Any]:
        """The card as JSON values; members are named by their ids."""
        content = asdict(replace(self, members=())) | {"map_scale": self.map_scale._asdict()}
        del content["written_id"]
        content["members"] = [member.model_id for member in self.members]
        # Cards of models without views, parts, masks, regions or members stay what they were, as do
        # their ids.
        if self.views == "pooled":
            del content["views"]
        content["parts"] = {name: parts.to_json() for name, parts in self.parts.items()}
        for name in ("parts", "masks", "members"):
            if not content[name]:
                del content[name]
        if self.region_false_alarm_rate == REGION_RATE:
            del content["region_false_alarm_rate"]
        for product in content["products"].values():
            if not product["peaks"]["scores"]:
                del product["peaks"]
            if not self.members:
                del product["member_peaks"]
        return {"format": FORMAT, **content}

    @classmethod
    def from_json(
        cls, content: Mapping[str, Any], members: tuple[ModelCard, ...] = ()
    ) -> ModelCard:
        """A card from the content of model.json, with the cards of its members.

        Raises UserError if it has another format, or names files outside the folder.
        """
        if content["format"] != FORMAT:
            raise UserError(
                f"model.json has format {content['format']!r}, not {FORMAT!r}; use the release "
                "that wrote it, or fit the model again"
            )
        values = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        values["members"] = members
        values["backbone"] = settings_from(BackboneSettings, values["backbone"])
        values["input"] = settings_from(InputSettings, values["input"])
        values["decode"] = settings_from(DecodeSettings, values["decode"])
        values["map_scale"] = Scale(**values["map_scale"])
        # In NFC, as in inventories; of two names that differ in their form alone, that in NFC.
        stored = sorted(values["products"].items(), key=lambda item: item[0] == composed(item[0]))
        values["products"] = {composed(name): ProductCard.from_json(one) for name, one in stored}
        names = {form for name, _ in stored for form in forms(name)}
        own = {paths.JOINT, *map(paths.product_file, names)}
        if foreign := {product.file for product in values["products"].values()} - own:
            raise UserError(f"model.json names files that belong to no product: {sorted(foreign)}")
        values["parts"] = {
            composed(name): PartCalibration.from_json(parts)
            for name, parts in values.get("parts", {}).items()
        }
        values["masks"] = {composed(n): str(h) for n, h in values.get("masks", {}).items()}
        if strange := set(values["masks"]) - set(values["products"]):
            raise UserError(f"model.json names masks of no product: {sorted(strange)}")
        return cls(**values)

    def new_backbone(self, state: Mapping[str, Tensor], device: str = "cpu") -> Backbone:
        """The backbone with the tensors of `state`."""
        return Backbone(self.backbone, state, device)

    def new_detector(self, state: Mapping[str, Tensor], backbone: Backbone) -> Detector:
        """A fitted detector with the tensors of `state`."""
        kind = detector_class(self.method)
        detector = kind(settings_from(kind.Settings, self.settings), backbone)
        detector.load_state(state)
        return detector


def identity(content: Mapping[str, Any]) -> str:
    """The hash of a card's content, without what the fit logged.

    Metrics of a fit, such as its number of rounds, depend on the number of workers.
    """
    products = {
        name: {k: v for k, v in product.items() if k not in {"counts", "fit_metrics", "curves"}}
        for name, product in content["products"].items()
    }
    hashed = {k: v for k, v in content.items() if k != "model_id"} | {"products": products}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
