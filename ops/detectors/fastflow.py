"""FastFlow (Yu et al. 2021): density of feature maps under convolutional normalizing flows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.flow_detector import (
    FlowCost,
    FlowDetector,
    FlowSettings,
    joint_density,
    timing_probe,
)
from ops.detectors.trained_on_features import kept_bytes
from ops.flows.subnets import Subnet, convolutions

#: Activations that a coupling block keeps per input number, besides those of its subnet.
_ACTIVATIONS = 5


@dataclass(frozen=True)
class FastFlowSettings(FlowSettings):
    """Settings of FastFlow; defaults are those for CNN backbones."""

    epochs: int = 500
    """Epochs of training."""
    batch: int = 32
    """Images per training step, over all workers together."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    blocks: int = 8
    """Coupling blocks of each layer's flow; 20 for transformer backbones."""
    hidden: float = 1.0
    """Hidden channels of a subnet per input channel; 0.16 for transformer backbones."""
    kernels: Literal["alternating", "3x3"] = "alternating"
    """Kernels of the subnets. alternating: 3 x 3 and 1 x 1 in turn; 3x3: all 3 x 3, as for
    ResNet-18."""


class FastFlow(FlowDetector):
    """Flows whose subnets are two convolutions.

    The density of a position is exp(-mean over channels of z^2 / 2).
    """

    name = "fastflow"
    Settings = FastFlowSettings
    settings: FastFlowSettings

    @classmethod
    def estimate(cls, settings: FastFlowSettings, fit_size: FitSize) -> ResourceEstimate:
        """Memory of the flows, most of which is activations of a training step."""
        activations = [_ACTIVATIONS + settings.hidden] * len(fit_size.layers)
        cost = FlowCost.of(fit_size, _subnets(settings), settings, activations)
        return ResourceEstimate(
            vectors=fit_size.images * sum(h * w for _, h, w in fit_size.layers),
            kept=0,
            fit_bytes=cost.fit_bytes(fit_size, min(settings.batch, fit_size.images_per_worker))
            + kept_bytes(fit_size, sum(math.prod(shape) for shape in fit_size.layers)),
            fit_host_bytes=fit_size.pixel_bytes,
            score_bytes=cost.score_bytes,
            model_bytes=cost.model_bytes,
            remedy="lower --fastflow.batch, --fastflow.hidden or --fastflow.blocks",
        )

    @classmethod
    def timing_probe(cls, settings: FastFlowSettings, fit_size: FitSize) -> TimingProbe:
        """A training step on the features of one image."""
        return timing_probe(settings, fit_size, _subnets(settings), 1)

    def subnets(self) -> list[Subnet]:
        """Section 3.3: 3 x 3 and 1 x 1 convolutions in turn."""
        return _subnets(self.settings)

    def density(self, latent: Tensor) -> Tensor:
        """exp(-mean over channels of z^2 / 2)."""
        return joint_density(latent)


def _subnets(settings: FastFlowSettings) -> list[Subnet]:
    kernels = [3, 1] if settings.kernels == "alternating" else [3]
    return [
        convolutions(kernels[n % len(kernels)], settings.hidden) for n in range(settings.blocks)
    ]
