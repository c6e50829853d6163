"""FastFlow (Yu et al. 2021): likelihood of feature maps under flows of convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.flow_detector import Cost, FlowDetector, FlowSettings, timing_probe
from ops.flows.subnets import Subnet, convolutions

#: Numbers that a coupling keeps of each that passes it, beside those of its subnet.
_KEPT = 5


@dataclass(frozen=True)
class FastFlowSettings(FlowSettings):
    """Settings of FastFlow; its defaults are for CNNs."""

    epochs: int = 500
    """How often training goes over all images."""
    batch: int = 32
    """Images of a step, over all workers together."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    blocks: int = 8
    """Couplings of each layer's flow; 20 for transformers."""
    hidden: float = 1.0
    """Hidden channels of a subnet to each that comes in; 0.16 for transformers."""
    kernels: Literal["alternating", "3x3"] = "alternating"
    """alternating: 3 x 3, then 1 x 1, and so on; 3x3: all of them, as for ResNet-18."""


class FastFlow(FlowDetector):
    """Flows whose subnets are two convolutions.

    A position's density is exp(-z^2 / 2, averaged over channels).
    """

    name = "fastflow"
    Settings = FastFlowSettings
    settings: FastFlowSettings

    @classmethod
    def estimate(cls, settings: FastFlowSettings, load: FitSize) -> ResourceEstimate:
        """What the flows take; what a step keeps is most of it."""
        kept = [_KEPT + settings.hidden] * len(load.layers)
        cost = Cost.of(load, _subnets(settings), settings.norm, kept)
        return ResourceEstimate(
            vectors=load.images * sum(h * w for _, h, w in load.layers),
            kept=0,
            fit_bytes=cost.fit_bytes(load, min(settings.batch, load.images_per_worker)),
            score_bytes=cost.score_bytes,
            model_bytes=cost.model_bytes,
            remedy="lower --fastflow.batch, --fastflow.hidden or --fastflow.blocks",
        )

    @classmethod
    def timing_probe(cls, settings: FastFlowSettings, load: FitSize) -> TimingProbe:
        """A step of one image, behind the backbone."""
        return timing_probe(settings, load, _subnets(settings), 1)

    def subnets(self) -> list[Subnet]:
        """Section 3.3: convolutions 3 x 3 and 1 x 1 in turn."""
        return _subnets(self.settings)

    def density(self, latent: Tensor) -> Tensor:
        """Of the mean over channels."""
        return (-latent.square().mean(dim=0) / 2).exp()


def _subnets(settings: FastFlowSettings) -> list[Subnet]:
    sizes = [3, 1] if settings.kernels == "alternating" else [3]
    return [convolutions(sizes[n % len(sizes)], settings.hidden) for n in range(settings.blocks)]
