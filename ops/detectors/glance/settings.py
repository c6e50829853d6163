"""Settings of Glance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ops.detectors.glance.score_windows import Grid
from ops.detectors.trained import TrainingSettings
from ops.errors import SettingError


@dataclass(frozen=True)
class GlanceSettings(TrainingSettings):
    """Settings of Glance.

    The paper gives the losses and the score but none of these numbers; defaults are ours.
    """

    epochs: int = 200
    """Epochs of training of Global-Net and the distortion head."""
    local_epochs: int = 200
    """Epochs of training of Local-Net, which comes first."""
    batch: int = 64
    lr: float = 1e-4
    patch: int = 64
    """Side of a patch in input pixels; it should suit the size of defects."""
    stride: int = 16
    """Distance in input pixels between scored windows; must divide `patch` and the input size."""
    patches: int = 1
    """Random patches per image and epoch."""
    width: int = 128
    """Channels of the first layers of Local-Net."""
    dim: int = 128
    """Dimension of patch descriptors."""
    distillation: float = 1.0
    """Weight lambda_k of the distillation loss of Local-Net; the backbone is the teacher."""
    compactness: float = 1.0
    """Weight lambda_c of the compactness loss of Local-Net: the mean squared correlation between
    dimensions of descriptors."""
    distortion: float = 1.0
    """Weight lambda_t of the loss of the distortion head, which classifies patches as clean or
    stained."""
    inconsistency: float = 0.5
    """Weight lambda_s of the inconsistency score s_IAD; that of the distortion score s_DAD is 1 -
    lambda_s."""
    scale: Literal["quantile", "raw"] = "quantile"
    """Scale of s_IAD in the score. quantile: divided by its 99th percentile on validation images;
    raw: not divided."""
    places: Literal["compared", "raw"] = "compared"
    """Scores of windows and of cells of the map. compared: with what validation images get at that
    place, as windows at the border see less around them and fewer of them overlap there; raw: as
    they are. The paper does not say."""
    validation_images: int = 32
    """Good images left out of training to set the scale and to compare places, at most a tenth of
    all. With fewer than ten images, some are used for both."""
    tolerance: float = 0.0
    """Windows are interpolated instead of computed where the estimated error of the map is below
    this; scores of good images are mostly below 1. 0 = every window is computed."""

    def __post_init__(self) -> None:
        """Raises SettingError if settings contradict each other."""
        if self.patch % self.stride:
            raise SettingError(f"stride {self.stride} must divide patch {self.patch}")

    @property
    def grid(self) -> Grid:
        """The windows of an image."""
        return Grid(self.patch, self.stride)
