"""The contract that every detector keeps; one test checks it for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.distributed import Group
from ops.errors import SettingError, UserError
from ops.features.backbone import Backbone
from ops.progress import ProgressCallback
from ops.results.anomaly_map import Map, extended

S = TypeVar("S")


class Checkpoint:
    """Where a fit saves its progress, so that it can resume after a worker dies.

    This base class saves nothing.
    """

    def read(self) -> Any:
        """What `write` saved last; None if nothing was saved."""
        return None

    def write(self, content: Any) -> None:
        """Save plain data in place of what was saved before."""


class Scores(NamedTuple):
    """Scores of a batch: image (B,), and map (B, h, w) at the detector's resolution, float32.

    Each is on the CPU or on the backbone's device.
    """

    image: Tensor
    map: Tensor


@dataclass(frozen=True)
class FitCounts:
    """How much a detector was fitted on. A grown detector adds to the counts of the earlier fit.

    None marks what a detector does not count.
    """

    images: int
    """Good images, those with features that are not finite included."""
    dropped_images: int | None = None
    """Images left out because their features are not finite."""
    patches: int | None = None
    """Patches with finite features."""
    dropped_patches: int | None = None
    """Patches left out because their features are not finite."""
    bank: int | None = None
    """Patches that the detector keeps."""

    def as_metrics(self) -> dict[str, float]:
        """The counts by name, without those that are None."""
        return {name: count for name, count in asdict(self).items() if count is not None}


class BankPicks(NamedTuple):
    """Which patches of good images the vectors of a bank are, in the order of the bank."""

    images: Tensor
    """Numbers (k,) of the images in the fit's list; -1 where a grown model had the vector before.
    """
    positions: Tensor
    """Places (k,) in the grid, row by row; of -1, the number of the vector in the earlier bank."""
    grid: tuple[int, int]
    """Rows and columns of the patches of an image."""


class Fitted(NamedTuple):
    """What a fit reports, beside the detector's state."""

    counts: FitCounts
    fit_metrics: dict[str, float] = {}  # noqa: RUF012 - read only
    """Numbers to log; nothing reads them back."""
    curves: dict[str, list[float]] = {}  # noqa: RUF012 - read only
    """Values per epoch."""
    pictures: dict[str, bytes] = {}  # noqa: RUF012 - read only
    """PNG files by name."""
    picks: BankPicks | None = None
    """Of a bank: where its vectors are from."""


@dataclass(frozen=True)
class MapSettings:
    """How a detector's maps are drawn at the input's size."""

    sigma: float = 4.0
    """Standard deviation, in input pixels, of the Gaussian that smooths anomaly maps; 0 = no
    smoothing."""


class Detector(ABC):
    """A detector scores images and their positions; larger scores are more anomalous.

    To fit one, call `add_images` with good images on any worker, and `exchange` after each round
    of batches if `exchanges` is set. Then call `fit` on all workers together.

    - `Settings` MUST be a frozen dataclass whose defaults are the paper's.
    - `add_images` MUST key what it keeps by `rows`, the numbers of the images in the fit's list,
      and not by the order of arrival.
    - `fit` MUST reach the same state for any grouping and order of the images, up to rounding.
    - `score` MUST give an image the same score and map in any batch. It MUST set its own gradient
      mode, and MUST NOT clamp or normalise scores.
    - `state` MUST hold all that scoring needs, as tensors only. `load_state` MUST restore it so
      that scores are equal to the last bit. Shapes in a state MAY vary, such as a bank's size.
    - The backbone is shared among detectors and MUST NOT be part of the state.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Any]]
    #: Whether workers must call `exchange` after every round of batches.
    exchanges: ClassVar[bool] = False
    #: Why images cannot be tiles of pictures; empty if they can.
    no_tiles: ClassVar[str] = ""
    #: Whether a patch is compared with those at its own position, so that images must be aligned.
    by_position: ClassVar[bool] = False
    #: Whether the score of an image is the largest value of its map.
    score_is_peak: ClassVar[bool] = False
    #: Whether `fit` reports `picks`.
    has_picks: ClassVar[bool] = False
    #: Name of the product that is fitted, for detectors that treat some products differently.
    product: str = ""

    def __init__(self, settings: Any, backbone: Backbone) -> None:
        """A detector that is not fitted; `settings` is an instance of `Settings`."""
        self.settings = settings
        self.backbone = backbone

    @classmethod
    @abstractmethod
    def estimate(cls, settings: Any, fit_size: FitSize) -> ResourceEstimate:
        """Memory and size of the model of a fit."""

    @classmethod
    @abstractmethod
    def timing_probe(cls, settings: Any, fit_size: FitSize) -> TimingProbe | None:
        """A sample of the computation of `fit`; None if `fit` takes negligible time."""

    @abstractmethod
    def add_images(self, images: Tensor, rows: Tensor) -> None:
        """Add good images (B, 3, H, W) with their numbers (B,) in the fit's list."""

    def add_inside(self, images: Tensor, rows: Tensor, inside: Tensor) -> None:  # noqa: ARG002
        """`add_images` of images of which pixels do not count where `inside` (B, H, W) is False.

        They are padding, or lie outside of an inspection mask. Detectors that learn from whole
        images learn from them, too.
        """
        self.add_images(images, rows)

    def exchange(self, group: Group) -> None:  # noqa: B027 - most detectors exchange nothing
        """Exchange data after each worker has added at most one batch. Collective."""

    def grow(self, state: Mapping[str, Tensor], counts: FitCounts) -> None:  # noqa: ARG002
        """Start from the state and counts of an earlier fit, before `add_images`, on one worker.

        Raises UserError if the detector cannot be grown.
        """
        raise UserError(f"{self.name} cannot grow a model; fit a new one on all images")

    @abstractmethod
    def fit(self, group: Group, progress: ProgressCallback, checkpoint: Checkpoint) -> Fitted:
        """Finish the fit, so that every worker holds the same detector. Collective.

        Only rank 0 may write the checkpoint. Raises UserError on every worker if there is no
        usable image.
        """

    @abstractmethod
    def score(self, images: Tensor) -> Scores:
        """Score images (B, 3, H, W) in [0, 1] on the backbone's device."""

    def score_inside(self, images: Tensor, inside: Tensor) -> Scores:
        """`score` of images of which pixels do not count where `inside` (B, H, W) is False.

        They are padding, or lie outside of an inspection mask, and play no part in the score,
        unless the score is not that of a patch. Maps have values there all the same.
        """
        scores = self.score(images)
        if not self.score_is_peak:
            return scores
        shown = shown_cells(inside, scores.map.shape[1:]).to(scores.map.device)
        return Scores(scores.map.where(shown, -torch.inf).flatten(1).amax(dim=1), scores.map)

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything that the fit learned."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""

    @abstractmethod
    def map_ceiling(self) -> float:
        """A map value that maps of good images stay below; it sets the scale of PNG maps."""


def settings_from(kind: type[S], values: Mapping[str, Any]) -> S:
    """A settings dataclass from a mapping. Raises SettingError that lists the known names."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # S is a dataclass
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SettingError(f"unknown settings {unknown} for {kind.__name__}; known: {known}")
    return kind(**values)


def finite_rows(vectors: Tensor) -> Tensor:
    """Mask (n,) of the rows of (n, d) that hold only finite numbers."""
    return torch.isfinite(vectors).all(dim=1)


def shown_cells(inside: Tensor, grid: Sequence[int]) -> Tensor:
    """The cells (B, h, w) of a grid (h, w) in which masks (B, H, W) are True somewhere."""
    return F.adaptive_max_pool2d(inside.float(), tuple(grid)).bool()


def extended_maps(maps: Sequence[Map], inside: Tensor, masked: Sequence[bool]) -> list[Map]:
    """Maps (h, w), each `extended` from the cells in which `inside` (B, H, W) is True somewhere.

    Those that are not `masked` stay as they are.
    """
    pixels = inside.cpu()
    return [
        extended(one, shown_cells(pixels[i : i + 1], one.shape)[0].numpy()) if masked[i] else one
        for i, one in enumerate(maps)
    ]


def nearest_shown(inside: Tensor, grid: Sequence[int]) -> Tensor:
    """For each cell (B, h * w) of a grid (h, w), the nearest in which `inside` is True somewhere.

    `inside` (B, H, W) must be True somewhere in each image; the result is on its device.
    """
    numbers = np.arange(grid[0] * grid[1]).reshape(tuple(grid))
    shown = shown_cells(inside.cpu(), grid).numpy()
    places = np.stack([extended(numbers, cells).ravel() for cells in shown])
    return torch.from_numpy(places).to(inside.device)
