"""CS-Flow (Rudolph et al., WACV 2022): likelihood of a feature map at several scales at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.trained import TrainingSettings
from ops.detectors.trained_on_features import TrainedOnFeatures
from ops.features.backbone import LayerShape
from ops.flows.cross_scale_flow import ScaleFlow

#: Numbers that a coupling keeps of each that passes it, beside those of its subnets.
_KEPT = 7


@dataclass(frozen=True)
class CsFlowSettings(TrainingSettings):
    """Settings of CS-Flow."""

    epochs: int = 240
    """How often training goes over all images."""
    batch: int = 16
    """Images of a step, over all workers together."""
    scales: int = 3
    """Each scale sees the image at half the size of the one before."""
    blocks: int = 4
    """Couplings of the flow."""
    hidden: int = 1024
    """Channels within a subnet."""
    clip: float = 1.0
    """Longer gradients are shortened to so much."""
    sigma: float = 0.0
    """Standard deviation in input pixels of a Gaussian over maps; 0 = none, as in the paper."""


class CsFlow(TrainedOnFeatures):
    """A flow from a feature map at several scales to a normal distribution.

    The image score is the mean of z^2 / 2 over everything, the map that over the channels of the
    finest scale; the volume change is no part of either. Of several layers the coarser are resized
    to the first and laid upon each other (our choice; the paper has one).
    """

    name = "csflow"
    Settings = CsFlowSettings
    settings: CsFlowSettings
    network: ScaleFlow | None

    @classmethod
    def estimate(cls, settings: CsFlowSettings, load: FitSize) -> ResourceEstimate:
        """What the flow takes; what a step keeps is most of it."""
        shapes = _shapes(settings, load)
        weights = 4 * ScaleFlow.parameter_count(shapes, settings.blocks, settings.hidden)
        elements = sum(math.prod(shape) for shape in shapes)
        within = 2 * settings.hidden * elements / load.channels
        step = int(4 * settings.blocks * (_KEPT * elements + 2 * within))
        return ResourceEstimate(
            vectors=load.images * sum(h * w for _, h, w in shapes),
            kept=0,
            fit_bytes=6 * weights
            + load.images_per_worker * 2 * 3 * load.size**2
            + min(settings.batch, load.images_per_worker) * step,
            score_bytes=2 * weights + step,
            model_bytes=weights,
            remedy="lower --csflow.batch, --csflow.hidden or --csflow.blocks",
        )

    @classmethod
    def timing_probe(cls, settings: CsFlowSettings, load: FitSize) -> TimingProbe:
        """A step of one image, behind the backbone."""
        shapes = _shapes(settings, load)
        network = ScaleFlow(shapes, settings.blocks, settings.hidden, 0)
        maps = [torch.zeros(1, *shape) for shape in shapes]
        times = settings.epochs * load.images / load.workers
        return TimingProbe(lambda: network(maps).sum().backward(), times)

    def network_for(self, shapes: list[LayerShape]) -> ScaleFlow:
        """As wide as all layers together."""
        s = self.settings
        return ScaleFlow(shapes, s.blocks, s.hidden, s.seed)

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """As the authors set it."""
        s = self.settings
        return torch.optim.Adam(network.parameters(), s.lr, eps=1e-4, weight_decay=s.weight_decay)

    def update(self, optimiser: torch.optim.Optimizer) -> None:
        """With bounded gradients."""
        assert self.network is not None
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        optimiser.step()

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """(n, 3, H, W) -> (n, C, h, w) of each scale; smaller images by leaving pixels out."""
        images = images.to(self.backbone.device)
        found = []
        for scale in range(self.settings.scales):
            size = (images.shape[2] >> scale, images.shape[3] >> scale)
            small = F.interpolate(images, size=size, mode="nearest") if scale else images
            layers = self.backbone(small)
            fine = layers[0].shape[2:]
            same = [F.interpolate(x, size=fine, mode="bilinear") for x in layers[1:]]
            found.append(torch.cat([layers[0], *same], dim=1))
        return found

    @torch.inference_mode()
    def score_one(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Section 3.4; the map (h, w) is as large as the finest scale."""
        assert self.network is not None
        latents, _ = self.network.latents(self.features(image[None]))
        squares = [latent[0].square() / 2 for latent in latents]
        return torch.cat([s.flatten() for s in squares]).mean(), squares[0].mean(dim=0)


def _shapes(settings: CsFlowSettings, load: FitSize) -> list[LayerShape]:
    """Of each scale, if sizes halve exactly."""
    _, height, width = load.layers[0]
    return [
        (load.channels, max(1, height >> scale), max(1, width >> scale))
        for scale in range(settings.scales)
    ]
