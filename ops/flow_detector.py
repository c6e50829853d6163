"""Detectors that are flows on the maps of a backbone's layers: what they share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ops.backbone import Backbone
from ops.map_flows import MapFlows, Norm, surprise
from ops.method import Load, Rehearsal, Shape
from ops.subnets import Subnet
from ops.training import Trained, TrainingSettings, from_sixteen, to_sixteen

#: Unseen good images lie farther out than those that a flow was trained on, and defects farther
#: still: maps get so many times the room that the latter need.
_ROOM = 8


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


class FlowDetector(Trained):
    """Trains flows from feature maps to a normal distribution, which keep the place of everything.

    A map is -log of the mean over layers of densities of the latent maps, in the order of the
    papers'; the image score is its maximum. Of images the pixels are kept: they are smaller than
    their features.
    """

    settings: FlowSettings
    network: MapFlows | None

    def __init__(self, settings: FlowSettings, backbone: Backbone) -> None:
        """Untrained."""
        super().__init__(settings, backbone)
        self._shapes: list[Shape] = []

    @abstractmethod
    def subnets(self) -> list[Subnet]:
        """Of each coupling of a flow."""

    @abstractmethod
    def density(self, latent: Tensor) -> Tensor:
        """(C, h, w) -> how likely each position is (h, w), 1 at most."""

    def new_network(self) -> MapFlows:
        """As many flows as the backbone has layers."""
        if not self._shapes:
            maps = self.features(torch.zeros(1, 3, *self._size))
            self._shapes = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]
        s = self.settings
        return MapFlows(self._shapes, self.subnets(), s.clamp, s.norm, s.seed)

    def sample(self, image: Tensor, row: int) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """The image."""
        return to_sixteen(image)

    def images(self, samples: Sequence[Tensor]) -> Tensor:
        """(n, 3, H, W) of samples, on the device."""
        none = torch.empty(0, 3, *self._size)
        return torch.cat([none, *(from_sixteen(s)[None] for s in samples)]).to(self.backbone.device)

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """Layers of images (n, 3, H, W)."""
        return list(self.backbone(images.to(self.backbone.device)))

    @torch.inference_mode()
    def score_one(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """A map as large as the image, and its maximum."""
        assert self.network is not None
        latents = self.network.latents(self.backbone(image[None]))
        drawn = surprise([self.density(z[0].double()) for z, _ in latents], image.shape[1:]).float()
        return drawn.max(), drawn

    def map_ceiling(self) -> float:
        """Of some of the good images, with room."""
        return _ROOM * super().map_ceiling()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights over, and the shapes that they are for."""
        self._shapes = [(c, h, w) for c, h, w in state["shapes"].tolist()]
        super().load_state(state)


@dataclass(frozen=True)
class Cost:
    """Bytes of a flow: weights that are trained, permutations, and what a step keeps an image."""

    trained: int
    fixed: int
    image: int

    @classmethod
    def of(cls, load: Load, subnets: Sequence[Subnet], norm: Norm, kept: Sequence[float]) -> Cost:
        """`kept`: numbers that a coupling keeps, of each layer, for each that passes it."""
        sizes = [math.prod(shape) for shape in load.layers]
        passing = sum(size * each for size, each in zip(sizes, kept, strict=True))
        return cls(
            trained=4 * MapFlows.trained_of(load.layers, subnets, norm),
            fixed=4 * MapFlows.fixed_of(load.layers, len(subnets)),
            image=int(4 * (2 * sum(sizes) + len(subnets) * passing)),
        )

    def fit_bytes(self, load: Load, step: int) -> int:
        """Weights, gradients, Adam's moments and a copy on its way; images; `step` at a time."""
        pixels = load.share * 2 * 3 * load.size**2
        return 6 * self.trained + 2 * self.fixed + pixels + step * self.image

    @property
    def score_bytes(self) -> int:
        """Weights twice while they are loaded, and an image."""
        return 2 * self.model_bytes + self.image

    @property
    def model_bytes(self) -> int:
        """Weights and permutations."""
        return self.trained + self.fixed


def rehearsal(
    settings: FlowSettings, load: Load, subnets: Sequence[Subnet], times: int
) -> Rehearsal:
    """A step of one image, behind the backbone; an epoch has `times` the images."""
    network = MapFlows(load.layers, subnets, settings.clamp, settings.norm, 0)
    maps = [torch.zeros(1, *shape) for shape in load.layers]
    steps = settings.epochs * times * load.images / load.workers
    return Rehearsal(lambda: network(maps).sum().backward(), steps)
