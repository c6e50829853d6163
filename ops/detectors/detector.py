"""What a detector is: the contract that every method keeps and one test checks for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.distributed import Group
from ops.errors import SettingError, UserError
from ops.features.backbone import Backbone
from ops.progress import ProgressCallback

S = TypeVar("S")
Shape = tuple[int, int, int]


class Checkpoint:
    """What a fit has found so far, for the next attempt if its group breaks; here for none."""

    def read(self) -> Any:
        """What was written last, plain data; None before."""
        return None

    def write(self, found: Any) -> None:
        """Replace what was written before."""


class Scores(NamedTuple):
    """Scores of a batch: image (B,), and map (B, h, w) at the method's own resolution, float32."""

    image: Tensor
    map: Tensor


class Fitted(NamedTuple):
    """What a fit says of itself, to log."""

    figures: dict[str, float]
    curves: dict[str, list[float]] = {}  # noqa: RUF012 - read only
    """Values per epoch."""
    pictures: dict[str, bytes] = {}  # noqa: RUF012 - read only
    """PNG files by name, for people."""


@dataclass(frozen=True)
class MapSettings:
    """How a method's maps are drawn at the input's size."""

    sigma: float = 4.0
    """Standard deviation in input pixels of the Gaussian that smooths maps; 0 = none."""


class Detector(ABC):
    """A detector. Larger scores are more anomalous.

    A fit takes in good images once, by `add_images` on whichever worker meets them, with
    `exchange` in between if the method needs it; then `fit` ends it on all workers together.

    Subclasses MUST name their frozen `Settings` dataclass, whose defaults are the paper's.
    What `add_images` keeps MUST be keyed by `rows`, the images' numbers in the fit's list, not by
    arrival; `fit` MUST reach the same state for any grouping and order of the images, up to
    `drift`.
    `score` MUST give an image the same score and map whatever batch it comes in, MUST choose its
    own grad mode, and MUST NOT clamp or normalise.
    `state` MUST hold all that a fit learned, as tensors alone, and `load_state` MUST restore it so
    that scores are equal bit for bit. Shapes in it are data: a bank has as many rows as it has.
    The backbone is shared among detectors and is no part of the state.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Any]]
    #: Relative difference that order and shards may make to a state.
    drift: ClassVar[float] = 0.0
    #: Whether workers must `exchange` after every round of batches.
    exchanges: ClassVar[bool] = False
    #: What is fitted, for methods that know some products by name; a fit sets it.
    product: str = ""

    def __init__(self, settings: Any, backbone: Backbone) -> None:
        """Unfitted; `settings` is an instance of `Settings`."""
        self.settings = settings
        self.backbone = backbone

    @classmethod
    @abstractmethod
    def estimate(cls, settings: Any, load: FitSize) -> ResourceEstimate:
        """What a fit takes."""

    @classmethod
    @abstractmethod
    def timing_probe(cls, settings: Any, load: FitSize) -> TimingProbe | None:
        """A sample of `fit`; None if it takes next to nothing."""

    @abstractmethod
    def add_images(self, images: Tensor, rows: Tensor) -> None:
        """Take in good images (B, 3, H, W) with their numbers (B,) in the fit's list."""

    def exchange(self, group: Group) -> None:  # noqa: B027 - most methods share nothing
        """Collective, after a round in which each rank has gathered a batch or nothing."""

    def grow(self, state: Mapping[str, Tensor], figures: Mapping[str, float]) -> None:  # noqa: ARG002
        """Before anything is gathered, on one rank: begin with what an earlier fit had learned.

        Raises UserError if the method cannot.
        """
        raise UserError(f"{self.name} cannot grow a model; fit a new one on all images")

    @abstractmethod
    def fit(self, group: Group, watch: ProgressCallback, checkpoint: Checkpoint) -> Fitted:
        """Collective: end the fit, so that every rank has the same detector.

        Only rank 0 writes notes. Raises UserError on every rank if there is nothing to fit.
        """

    @abstractmethod
    def score(self, images: Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1] on the backbone's device."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that was learned."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Become what `state` describes."""

    @abstractmethod
    def map_ceiling(self) -> float:
        """A map value that images like the ones fitted stay below: sets the scale of PNG maps."""


def settings_from(kind: type[S], values: Mapping[str, Any]) -> S:
    """A settings dataclass from a mapping. Raises UserError that lists the known names."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # S is a dataclass
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SettingError(f"unknown settings {unknown} for {kind.__name__}; known: {known}")
    return kind(**values)


def finite_rows(vectors: Tensor) -> Tensor:
    """Which rows of (n, d) hold only finite numbers."""
    return torch.isfinite(vectors).all(dim=1)
