"""The base of detectors that train normalizing flows on feature maps, and what such flows cost."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ops.detectors.fit_cost import FitSize, TimingProbe
from ops.detectors.trained_on_features import (
    FeatureSettings,
    TrainedOnFeatures,
    whitening_bytes,
)
from ops.features.backbone import LayerShape
from ops.flows.feature_map_flow import MapFlows, Norm, negative_log_density
from ops.flows.subnets import Subnet
from ops.flows.vector_flow import fixed_value_count


@dataclass(frozen=True)
class FlowSettings(FeatureSettings):
    """Settings of all flows on feature maps."""

    clamp: float = 2.0
    """Clamp of the log-scales in coupling blocks. The papers give none; this is that of common
    implementations."""
    norm: Norm = "trained"
    """Layer normalisation of feature maps before the flow. trained: with a trained scale and shift
    of each value, as in common implementations; plain: without. The papers do not say. The scale is
    no part of the likelihood, so many steps shrink it towards 0, and with it what tells a defect;
    plain avoids this."""
    sigma: float = 0.0
    """Standard deviation, in input pixels, of the Gaussian that smooths anomaly maps; 0 = no
    smoothing, as in the papers."""


class FlowDetector(TrainedOnFeatures):
    """Trains one flow per layer, from feature maps to normally distributed latent maps.

    The anomaly map is -log of the mean over layers of the latent maps' densities; it ranks
    positions as the papers' maps do. The image score is its maximum.
    """

    settings: FlowSettings
    network: MapFlows | None
    score_is_peak = True

    @abstractmethod
    def subnets(self) -> list[Subnet]:
        """The subnet of each coupling block of a flow."""

    @abstractmethod
    def density(self, latent: Tensor) -> Tensor:
        """Latent maps (n, C, h, w) -> density of each position (n, h, w), at most 1."""

    def network_for(self, shapes: list[LayerShape]) -> MapFlows:
        """One flow for each feature map."""
        s = self.settings
        return MapFlows(shapes, self.subnets(), s.clamp, s.norm, s.seed)

    @torch.inference_mode()
    def score_block(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maxima (n,) of the anomaly maps, and the maps (n, H, W)."""
        assert self.network is not None
        latents = self.network.latents(self.features(images))
        densities = [self.density(z.double()) for z, _ in latents]
        maps = negative_log_density(densities, images.shape[2:]).float()
        return maps.amax(dim=(1, 2)), maps


def joint_density(latent: Tensor) -> Tensor:
    """Latent maps (n, C, h, w) -> exp(-mean over channels of z^2 / 2), (n, h, w)."""
    return (-latent.square().mean(dim=1) / 2).exp()


@dataclass(frozen=True)
class FlowCost:
    """Memory of flows on feature maps, in bytes."""

    trained: int
    """Trained weights."""
    fixed: int
    """Permutations and whitenings."""
    image: int
    """Activations that a step keeps for the gradients of one image."""

    @classmethod
    def of(
        cls,
        fit_size: FitSize,
        subnets: Sequence[Subnet],
        settings: FlowSettings,
        activations: Sequence[float],
    ) -> FlowCost:
        """`activations`: numbers that a coupling block keeps per input number, for each layer."""
        sizes = [math.prod(shape) for shape in fit_size.layers]
        kept = sum(size * each for size, each in zip(sizes, activations, strict=True))
        return cls(
            trained=4 * MapFlows.parameter_count(fit_size.layers, subnets, settings.norm),
            fixed=4 * fixed_value_count(fit_size.layers, len(subnets))
            + whitening_bytes(settings, fit_size.layers),
            image=int(4 * (2 * sum(sizes) + len(subnets) * kept)),
        )

    def fit_bytes(self, fit_size: FitSize, step_images: int) -> int:
        """Memory of a worker: weights, gradients, Adam's moments, a checkpoint, images, a step."""
        own = 6 * self.trained + 2 * self.fixed + step_images * self.image
        return own + fit_size.pixel_bytes

    @property
    def score_bytes(self) -> int:
        """Memory of scoring: the weights twice, as they are loaded, and one image."""
        return 2 * self.model_bytes + self.image

    @property
    def model_bytes(self) -> int:
        """Size of the model: weights, permutations and whitenings."""
        return self.trained + self.fixed


def timing_probe(
    settings: FlowSettings, fit_size: FitSize, subnets: Sequence[Subnet], views: int
) -> TimingProbe:
    """A training step on the features of one image; an epoch has `views` views of each image."""
    network = MapFlows(fit_size.layers, subnets, settings.clamp, settings.norm, 0)
    network.to(fit_size.device)
    maps = [torch.zeros(1, *shape, device=fit_size.device) for shape in fit_size.layers]
    steps = settings.epochs * views * fit_size.images / fit_size.workers
    return TimingProbe(lambda: network(maps).sum().backward(), steps)
