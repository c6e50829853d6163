"""Detectors that are flows on the maps of a backbone's layers: what they share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ops.detectors.fit_cost import FitSize, TimingProbe
from ops.detectors.trained import TrainingSettings
from ops.detectors.trained_on_features import TrainedOnFeatures
from ops.features.backbone import LayerShape
from ops.flows.feature_map_flow import MapFlows, Norm, negative_log_density
from ops.flows.subnets import Subnet
from ops.flows.vector_flow import fixed_value_count


@dataclass(frozen=True)
class FlowSettings(TrainingSettings):
    """What all flows on maps can be told."""

    clamp: float = 2.0
    """Bound of a coupling's log-scale; of the implementations, papers give none."""
    norm: Norm = "trained"
    """How maps are normalised before their flow; plain: without a scale and shift for each value.
    Of the implementations, papers say nothing."""
    sigma: float = 0.0
    """Standard deviation in input pixels of a Gaussian over maps; 0 = none, as in the papers."""


class FlowDetector(TrainedOnFeatures):
    """Trains flows from feature maps to a normal distribution, which keep the place of everything.

    A map is -log of the mean over layers of densities of the latent maps, in the order of the
    papers'; the image score is its maximum.
    """

    settings: FlowSettings
    network: MapFlows | None

    @abstractmethod
    def subnets(self) -> list[Subnet]:
        """Of each coupling of a flow."""

    @abstractmethod
    def density(self, latent: Tensor) -> Tensor:
        """(C, h, w) -> how likely each position is (h, w), 1 at most."""

    def network_for(self, shapes: list[LayerShape]) -> MapFlows:
        """A flow for each map."""
        s = self.settings
        return MapFlows(shapes, self.subnets(), s.clamp, s.norm, s.seed)

    @torch.inference_mode()
    def score_one(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """A map as large as the image, and its maximum."""
        assert self.network is not None
        latents = self.network.latents(self.backbone(image[None]))
        drawn = negative_log_density(
            [self.density(z[0].double()) for z, _ in latents], image.shape[1:]
        ).float()
        return drawn.max(), drawn


@dataclass(frozen=True)
class Cost:
    """Bytes of a flow: weights that are trained, permutations, and what a step keeps an image."""

    trained: int
    fixed: int
    image: int

    @classmethod
    def of(
        cls, load: FitSize, subnets: Sequence[Subnet], norm: Norm, kept: Sequence[float]
    ) -> Cost:
        """`kept`: numbers that a coupling keeps, of each layer, for each that passes it."""
        sizes = [math.prod(shape) for shape in load.layers]
        passing = sum(size * each for size, each in zip(sizes, kept, strict=True))
        return cls(
            trained=4 * MapFlows.parameter_count(load.layers, subnets, norm),
            fixed=4 * fixed_value_count(load.layers, len(subnets)),
            image=int(4 * (2 * sum(sizes) + len(subnets) * passing)),
        )

    def fit_bytes(self, load: FitSize, step: int) -> int:
        """Weights, gradients, Adam's moments and a copy on its way; images; `step` at a time."""
        pixels = load.images_per_worker * 2 * 3 * load.size**2
        return 6 * self.trained + 2 * self.fixed + pixels + step * self.image

    @property
    def score_bytes(self) -> int:
        """Weights twice while they are loaded, and an image."""
        return 2 * self.model_bytes + self.image

    @property
    def model_bytes(self) -> int:
        """Weights and permutations."""
        return self.trained + self.fixed


def timing_probe(
    settings: FlowSettings, load: FitSize, subnets: Sequence[Subnet], times: int
) -> TimingProbe:
    """A step of one image, behind the backbone; an epoch has `times` the images."""
    network = MapFlows(load.layers, subnets, settings.clamp, settings.norm, 0)
    maps = [torch.zeros(1, *shape) for shape in load.layers]
    steps = settings.epochs * times * load.images / load.workers
    return TimingProbe(lambda: network(maps).sum().backward(), steps)
