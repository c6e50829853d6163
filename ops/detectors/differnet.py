"""DifferNet (Rudolph et al., WACV 2021): likelihood of globally pooled multi-scale features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from ops.augment.rotation import rotated
from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.trained import Trained, TrainingSettings
from ops.detectors.uint16_images import from_uint16, to_uint16
from ops.distributed import Group
from ops.errors import SettingError
from ops.flows.vector_flow import NegativeLogLikelihood, VectorFlow

#: Turned views that go through the network at once when gradients are kept.
_VIEWS = 8
#: Maps are blurred, so one pixel in so many is enough.
_STRIDE = 4


@dataclass(frozen=True)
class DifferNetSettings(TrainingSettings):
    """Settings of DifferNet."""

    scales: int = 3
    """Each scale sees the image at half the size of the one before."""
    blocks: int = 8
    """Coupling blocks of the flow."""
    hidden: int = 2048
    """Width of the three hidden layers of its subnets."""
    standardise: bool = False
    """Give the flow features of mean 0 and variance 1 over the good images; only for `cached`."""
    noise: float = 0.0
    """Standard deviation of noise on training features, in those of the features (standardised);
    it keeps a flow of few images from learning them by heart."""
    transforms: int = 4
    """Turned views of an image in each epoch."""
    features: Literal["cached", "online"] = "cached"
    """online: new views in each epoch, as in the paper; cached: drawn from `views` taken once."""
    views: int = 64
    """Turned views of an image that `cached` takes."""
    brightness: float = 0.0
    """Views for training vary in brightness by up to this share."""
    contrast: float = 0.0
    """Views for training vary in contrast by up to this share."""
    score_transforms: int = 64
    """Views of an image that is scored, at equal angles."""
    maps: Literal["gradient", "none"] = "gradient"
    """none: the map is the image's score everywhere, at a third of the cost."""
    blur: float = 3.0
    """Standard deviation in pixels of the Gaussian that smooths gradients, before their absolute
    value is taken."""
    sigma: float = 0.0
    """Standard deviation of a Gaussian over the map itself; 0 = none."""

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.standardise and self.features == "online":
            raise SettingError("standardise needs features = cached: online ones are not kept")
        if self.noise and not self.standardise:
            raise SettingError(f"noise {self.noise} is a share of a spread; it needs standardise")


class DifferNet(Trained):
    """A flow from features, averaged over space at several scales, to a normal distribution.

    The image score is the mean of z^2 over views and dimensions (the paper's tau up to a constant);
    the volume change is no part of it. Maps are gradients of the training loss: they show what a
    score rests on, and are no likelihood of a pixel. The authors' views at test are random; here
    they are fixed, so that an image has one score.
    """

    name = "differnet"
    Settings = DifferNetSettings
    settings: DifferNetSettings
    network: NegativeLogLikelihood | None

    @classmethod
    def estimate(cls, settings: DifferNetSettings, load: FitSize) -> ResourceEstimate:
        """Weights, gradients, Adam's moments and a copy on its way, and what is kept of images."""
        width = load.channels * settings.scales
        weights = 4 * VectorFlow.parameter_count(width, settings.blocks, settings.hidden)
        cached = settings.features == "cached"
        each = 4 * settings.views * width if cached else 2 * 3 * load.size**2
        return ResourceEstimate(
            vectors=load.images * (settings.views if cached else settings.transforms),
            kept=0,
            fit_bytes=6 * weights + load.images_per_worker * each,
            score_bytes=2 * weights,
            model_bytes=weights,
            remedy="lower --differnet.hidden, --differnet.blocks or --differnet.views",
        )

    @classmethod
    def timing_probe(cls, settings: DifferNetSettings, load: FitSize) -> TimingProbe:
        """One step on vectors that need not be looked at."""
        width = load.channels * settings.scales
        vectors = torch.zeros(settings.batch * settings.transforms, width)
        network = NegativeLogLikelihood(VectorFlow(width, settings.blocks, settings.hidden, 0))
        steps = settings.epochs * math.ceil(load.images / settings.batch)
        return TimingProbe(lambda: network(vectors).mean().backward(), steps / load.workers)

    def new_network(self) -> NegativeLogLikelihood:
        """The flow, as wide as the features of all layers and scales."""
        device = self.backbone.device
        with torch.inference_mode():
            width = self._features(torch.zeros(1, 3, 64, 64, device=device), 1).shape[1]
        width *= self.settings.scales
        s = self.settings
        return NegativeLogLikelihood(VectorFlow(width, s.blocks, s.hidden, s.seed))

    def prepare(self, network: nn.Module, group: Group) -> None:
        """Mean and standard deviation of all views."""
        if not self.settings.standardise:
            return
        assert isinstance(network, NegativeLogLikelihood)
        flow = network.flow
        views = torch.cat([torch.empty(0, flow.width), *self._samples.values()]).double()
        count = group.all_reduce(torch.tensor([len(views)]))
        mean = group.all_reduce(views.sum(dim=0)) / count
        spread = group.all_reduce((views - mean).square().sum(dim=0)) / count
        flow.mean.copy_(mean)
        # A feature that never varies says nothing; it must not become infinite either.
        flow.std.copy_(spread.sqrt().clamp(min=1e-3 * float(spread.max().sqrt())))

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """As the authors set it."""
        s = self.settings
        return torch.optim.Adam(
            network.parameters(), lr=s.lr, betas=(0.8, 0.8), eps=1e-4, weight_decay=s.weight_decay
        )

    def _features(self, images: Tensor, scales: int) -> Tensor:
        """(B, 3, H, W) -> (B, sum of C * scales): maps averaged over space, largest scale first."""
        found = []
        for scale in range(scales):
            size = (images.shape[2] >> scale, images.shape[3] >> scale)
            small = F.interpolate(images, size=size, mode="nearest") if scale else images
            found += [layer.mean(dim=(2, 3)) for layer in self.backbone(small)]
        return torch.cat(found, dim=1)

    @torch.inference_mode()
    def sample(self, image: Tensor, row: int) -> Tensor:
        """Features (views, width) of turned views; or the image in 16 bits."""
        if self.settings.features == "online":
            return to_uint16(image)
        return self._turned(image, self.settings.views, self.generator("views", row)).cpu()

    def inputs(self, samples: list[tuple[int, Tensor]], epoch: int) -> Tensor:
        """Features (B * transforms, width) of this epoch's views."""
        assert self.network is not None
        count, device = self.settings.transforms, self.backbone.device
        found = [torch.empty(0, self._width(), device=device)]
        for row, sample in samples:
            generator = self.generator("epoch", epoch, row)
            if self.settings.features == "cached":
                order = torch.randperm(len(sample), generator=generator)
                vectors = sample[order[:count]]
                if self.settings.noise:
                    noise = torch.randn(vectors.shape, generator=generator)
                    vectors = vectors + self.settings.noise * self.network.flow.std.cpu() * noise
                found.append(vectors.to(device))
            else:
                with torch.no_grad():
                    found.append(self._turned(from_uint16(sample).to(device), count, generator))
        return torch.cat(found)

    def _width(self) -> int:
        assert self.network is not None
        return self.network.flow.width

    def _turned(self, image: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Features (count, width) of views at random angles, brightness and contrast."""
        s = self.settings
        angle, bright, strong = torch.rand(3, count, generator=generator).to(image.device) * 2 - 1
        views = rotated(image.expand(count, -1, -1, -1), angle * math.pi)
        if s.contrast:
            grey = views.mean(dim=(1, 2, 3), keepdim=True)
            views = grey + (views - grey) * (1 + s.contrast * strong[:, None, None, None])
        if s.brightness:
            views = views * (1 + s.brightness * bright[:, None, None, None])
        return self._features(views.clamp(0, 1), s.scales)

    def score_one(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Section 3.3."""
        assert self.network is not None
        count, drawn = self.settings.score_transforms, self.settings.maps == "gradient"
        angles = torch.arange(count, device=image.device) * (2 * math.pi / count)
        squares = torch.zeros((), device=image.device)
        saliency = torch.zeros(image.shape[1:], device=image.device)
        for part in torch.split(angles, _VIEWS):
            with torch.set_grad_enabled(drawn):
                upright = image.expand(len(part), -1, -1, -1).clone().requires_grad_(drawn)
                vectors = self._features(rotated(upright, part), self.settings.scales)
                latent, volume = self.network.flow(vectors)
                loss = (latent.square().sum(dim=1) / 2 - volume) / latent.shape[1]
            squares = squares + latent.detach().square().mean(dim=1).sum()
            if drawn:
                # With respect to the picture before it is turned, so it need not be turned back.
                (gradient,) = torch.autograd.grad(loss.sum(), upright)
                saliency += self._blurred(gradient).abs().mean(dim=1).sum(dim=0)
        score = squares / count
        if not drawn:
            return score, score.expand(1, 1)
        return score, F.avg_pool2d(saliency[None] / count, _STRIDE)[0]

    def _blurred(self, gradient: Tensor) -> Tensor:
        sigma = self.settings.blur
        if not sigma:
            return gradient
        kernel = 2 * math.ceil(4 * sigma) + 1
        return torch.as_tensor(gaussian_blur(gradient, kernel, sigma))
