"""CS-Flow (Rudolph et al., WACV 2022): likelihood of feature maps at several scales at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.trained_on_features import (
    FeatureSettings,
    TrainedOnFeatures,
    kept_bytes,
    whitening_bytes,
)
from ops.features.backbone import LayerShape
from ops.flows.cross_scale_flow import ScaleFlow

#: Activations that a coupling block keeps per input number, besides those of its subnets.
_ACTIVATIONS = 7


@dataclass(frozen=True)
class CsFlowSettings(FeatureSettings):
    """Settings of CS-Flow."""

    epochs: int = 240
    """Epochs of training."""
    batch: int = 16
    """Images per training step, over all workers together."""
    scales: int = 3
    """Scales of the input image; each is half the size of the one before."""
    blocks: int = 4
    """Coupling blocks of the flow."""
    hidden: int = 1024
    """Hidden channels of a subnet."""
    clip: float = 1.0
    """Maximum norm of the gradient; longer gradients are clipped."""
    sigma: float = 0.0
    """Standard deviation, in input pixels, of the Gaussian that smooths anomaly maps; 0 = no
    smoothing, as in the paper."""


class CsFlow(TrainedOnFeatures):
    """One flow from feature maps at several scales to a normal distribution.

    The image score is the mean of z^2 / 2 over all scales, channels and positions. The map is the
    mean over channels at the finest scale. Neither includes the log-determinant of the Jacobian. If
    the backbone has several layers, the coarser ones are resized to the first and concatenated (our
    choice; the paper has one layer).
    """

    name = "csflow"
    Settings = CsFlowSettings
    settings: CsFlowSettings
    network: ScaleFlow | None

    @classmethod
    def estimate(cls, settings: CsFlowSettings, fit_size: FitSize) -> ResourceEstimate:
        """Memory of the flow, most of which is activations of a training step."""
        shapes = _shapes(settings, fit_size)
        weights = 4 * ScaleFlow.parameter_count(shapes, settings.blocks, settings.hidden)
        fixed = whitening_bytes(settings, shapes)
        elements = sum(math.prod(shape) for shape in shapes)
        hidden = 2 * settings.hidden * elements / fit_size.channels
        step = int(4 * settings.blocks * (_ACTIVATIONS * elements + 2 * hidden))
        return ResourceEstimate(
            vectors=fit_size.images * sum(h * w for _, h, w in shapes),
            kept=0,
            fit_bytes=6 * weights
            + 2 * fixed
            + fit_size.pixel_bytes
            + kept_bytes(fit_size, elements)
            + min(settings.batch, fit_size.images_per_worker) * step,
            fit_host_bytes=fit_size.pixel_bytes,
            score_bytes=2 * (weights + fixed) + step,
            model_bytes=weights + fixed,
            remedy="lower --csflow.batch, --csflow.hidden or --csflow.blocks",
        )

    @classmethod
    def timing_probe(cls, settings: CsFlowSettings, fit_size: FitSize) -> TimingProbe:
        """A training step on the features of one image."""
        shapes = _shapes(settings, fit_size)
        network = ScaleFlow(shapes, settings.blocks, settings.hidden, 0).to(fit_size.device)
        maps = [torch.zeros(1, *shape, device=fit_size.device) for shape in shapes]
        steps = settings.epochs * fit_size.images / fit_size.workers
        return TimingProbe(lambda: network(maps).sum().backward(), steps)

    def network_for(self, shapes: list[LayerShape]) -> ScaleFlow:
        """A flow on the channels of all layers together."""
        s = self.settings
        return ScaleFlow(shapes, s.blocks, s.hidden, s.seed)

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """Adam with the authors' epsilon."""
        s = self.settings
        return torch.optim.Adam(network.parameters(), s.lr, eps=1e-4, weight_decay=s.weight_decay)

    def update(self, optimiser: torch.optim.Optimizer) -> None:
        """Clip the gradient, then update the weights."""
        assert self.network is not None
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        optimiser.step()

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images (n, 3, H, W) -> features (n, C, h, w) of each scale; images are downsampled."""
        scales = []
        for scale in range(self.settings.scales):
            size = (images.shape[2] >> scale, images.shape[3] >> scale)
            small = F.interpolate(images, size=size, mode="nearest") if scale else images
            layers = self.backbone(small)
            fine = layers[0].shape[2:]
            resized = [F.interpolate(x, size=fine, mode="bilinear") for x in layers[1:]]
            scales.append(torch.cat([layers[0], *resized], dim=1))
        return scales

    @torch.inference_mode()
    def score_block(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Section 3.4; the maps (n, h, w) are as large as the finest scale."""
        assert self.network is not None
        latents, _ = self.network.latents(self.features(images))
        squares = [latent.square() / 2 for latent in latents]
        scores = torch.cat([s.flatten(1) for s in squares], dim=1).mean(dim=1)
        return scores, squares[0].mean(dim=1)


def _shapes(settings: CsFlowSettings, fit_size: FitSize) -> list[LayerShape]:
    """The shape of each scale's features, if sizes halve exactly."""
    _, height, width = fit_size.layers[0]
    return [
        (fit_size.channels, max(1, height >> scale), max(1, width >> scale))
        for scale in range(settings.scales)
    ]
