"""DifferNet (Rudolph et al., WACV 2021): likelihood of globally pooled multi-scale features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.augment.rotation import rotate_images, rotations
from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.trained import Trained, TrainingSettings
from ops.detectors.uint16_images import from_uint16, to_uint16
from ops.distributed import Group
from ops.errors import SettingError
from ops.flows.vector_flow import NegativeLogLikelihood, VectorFlow

#: Views in one pass of scoring, or the backbone's block; it keeps activations for gradients.
_VIEWS_PER_PASS = 8
#: Maps are smooth, so they are averaged over squares of this many pixels a side.
_STRIDE = 4


@dataclass(frozen=True)
class DifferNetSettings(TrainingSettings):
    """Settings of DifferNet."""

    scales: int = 3
    """Scales of the input image; each is half the size of the one before."""
    blocks: int = 8
    """Coupling blocks of the flow."""
    hidden: int = 2048
    """Width of the three hidden layers of a subnet."""
    standardise: bool = False
    """Standardise features to mean 0 and variance 1; requires features = cached."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on standardised training features, against overfitting
    to few images; requires `standardise`."""
    transforms: int = 4
    """Randomly rotated views of each image per epoch."""
    features: Literal["cached", "online"] = "cached"
    """online: new views in each epoch, as in the paper; cached: views are drawn from a pool of
    `views` per image, whose features are computed once."""
    views: int = 64
    """Rotated views per image in the pool of features = cached."""
    brightness: float = 0.0
    """Maximum relative change of brightness of training views."""
    contrast: float = 0.0
    """Maximum relative change of contrast of training views."""
    score_transforms: int = 64
    """Rotated views of a scored image, at equally spaced angles."""
    maps: Literal["gradient", "none"] = "gradient"
    """gradient: the map is the gradient of the loss by pixels; none: the map is constant, the image
    score, for a third of the time."""
    blur: float = 3.0
    """Standard deviation, in input pixels, of the Gaussian that smooths gradients before their
    absolute values are taken."""
    sigma: float = 0.0
    """Standard deviation, in input pixels, of the Gaussian that smooths anomaly maps; 0 = no
    smoothing."""

    def __post_init__(self) -> None:
        """Raises SettingError if settings contradict each other."""
        if self.standardise and self.features == "online":
            raise SettingError(
                "standardise requires features = cached: online features are not stored"
            )
        if self.noise and not self.standardise:
            raise SettingError(
                f"noise {self.noise} is in standard deviations; it requires standardise"
            )


class DifferNet(Trained):
    """A flow from spatially averaged features at several scales to a normal distribution.

    The image score is the mean of z^2 over views and dimensions: the paper's tau up to a constant,
    without the log-determinant of the Jacobian. Maps are gradients of the training loss: they show
    which pixels a score depends on, and are no likelihoods. The authors draw random views at test
    time; here they are fixed, so that an image has one score.
    """

    name = "differnet"
    Settings = DifferNetSettings
    settings: DifferNetSettings
    network: NegativeLogLikelihood | None

    @classmethod
    def estimate(cls, settings: DifferNetSettings, fit_size: FitSize) -> ResourceEstimate:
        """Weights, gradients, Adam's moments and a checkpoint, and the samples of images."""
        width = fit_size.channels * settings.scales
        weights = 4 * VectorFlow.parameter_count(width, settings.blocks, settings.hidden)
        cached = settings.features == "cached"
        sample = 4 * settings.views * width if cached else 2 * 3 * fit_size.pixels
        return ResourceEstimate(
            vectors=fit_size.images * (settings.views if cached else settings.transforms),
            kept=0,
            fit_bytes=6 * weights + fit_size.images_per_worker * sample,
            fit_host_bytes=fit_size.images_per_worker * sample,
            score_bytes=2 * weights,
            model_bytes=weights,
            remedy="lower --differnet.hidden, --differnet.blocks or --differnet.views",
        )

    @classmethod
    def timing_probe(cls, settings: DifferNetSettings, fit_size: FitSize) -> TimingProbe:
        """A training step on features."""
        width = fit_size.channels * settings.scales
        count, device = settings.batch * settings.transforms, fit_size.device
        vectors = torch.zeros(count, width, device=device)
        network = NegativeLogLikelihood(VectorFlow(width, settings.blocks, settings.hidden, 0))
        network.to(device)
        steps = settings.epochs * math.ceil(fit_size.images / settings.batch)
        return TimingProbe(lambda: network(vectors).mean().backward(), steps / fit_size.workers)

    def new_network(self) -> NegativeLogLikelihood:
        """A flow on the concatenated features of all layers and scales."""
        device = self.backbone.device
        with torch.inference_mode():
            width = self._features(torch.zeros(1, 3, 64, 64, device=device), 1).shape[1]
        width *= self.settings.scales
        s = self.settings
        return NegativeLogLikelihood(VectorFlow(width, s.blocks, s.hidden, s.seed))

    def prepare(self, network: nn.Module, group: Group) -> None:
        """Compute mean and standard deviation of the features of all views."""
        if not self.settings.standardise:
            return
        assert isinstance(network, NegativeLogLikelihood)
        flow = network.flow
        views = torch.cat([torch.empty(0, flow.width), *self._samples.values()]).double()
        count = group.all_reduce(torch.tensor([len(views)]))
        mean = group.all_reduce(views.sum(dim=0)) / count
        variance = group.all_reduce((views - mean).square().sum(dim=0)) / count
        flow.mean.copy_(mean)
        # A constant feature must not become infinite.
        flow.std.copy_(variance.sqrt().clamp(min=1e-3 * float(variance.max().sqrt())))

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """Adam with the authors' betas and epsilon."""
        s = self.settings
        return torch.optim.Adam(
            network.parameters(), lr=s.lr, betas=(0.8, 0.8), eps=1e-4, weight_decay=s.weight_decay
        )

    def _features(self, images: Tensor, scales: int) -> Tensor:
        """Images (B, 3, H, W) -> spatial means of features (B, scales * C), largest scale first."""
        means = []
        for scale in range(scales):
            size = (images.shape[2] >> scale, images.shape[3] >> scale)
            small = F.interpolate(images, size=size, mode="nearest") if scale else images
            means += [layer.mean(dim=(2, 3)) for layer in self.backbone(small)]
        return torch.cat(means, dim=1)

    @torch.inference_mode()
    def sample(self, image: Tensor, row: int) -> Tensor:
        """Features (views, width) of random views; or the image in 16 bits for online features."""
        if self.settings.features == "online":
            return to_uint16(image)
        return self._random_views(image, self.settings.views, self.generator("views", row)).cpu()

    def inputs(self, samples: list[tuple[int, Tensor]], epoch: int) -> Tensor:
        """Features (B * transforms, width) of the epoch's views."""
        assert self.network is not None
        count, device = self.settings.transforms, self.backbone.device
        features = [torch.empty(0, self._width(), device=device)]
        for row, sample in samples:
            generator = self.generator("epoch", epoch, row)
            if self.settings.features == "cached":
                order = torch.randperm(len(sample), generator=generator)
                vectors = sample[order[:count]]
                if self.settings.noise:
                    noise = torch.randn(vectors.shape, generator=generator)
                    vectors = vectors + self.settings.noise * self.network.flow.std.cpu() * noise
                features.append(vectors.to(device))
            else:
                with torch.no_grad():
                    image = from_uint16(sample).to(device)
                    features.append(self._random_views(image, count, generator))
        return torch.cat(features)

    def _width(self) -> int:
        assert self.network is not None
        return self.network.flow.width

    def _random_views(self, image: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Features (count, width) of views of random angle, brightness and contrast."""
        s = self.settings
        angle, brightness, contrast = (
            torch.rand(3, count, generator=generator).to(image.device) * 2 - 1
        )
        views = rotate_images(image.expand(count, -1, -1, -1), angle * math.pi)
        if s.contrast:
            grey = views.mean(dim=(1, 2, 3), keepdim=True)
            views = grey + (views - grey) * (1 + s.contrast * contrast[:, None, None, None])
        if s.brightness:
            views = views * (1 + s.brightness * brightness[:, None, None, None])
        return self._features(views.clamp(0, 1), s.scales)

    def score_block(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score (section 3.3) and map of one image."""
        assert self.network is not None
        image = images[0].detach()
        count, with_map = self.settings.score_transforms, self.settings.maps == "gradient"
        angles = torch.arange(count) * (2 * math.pi / count)
        squares = torch.zeros((), device=image.device)
        saliency = torch.zeros(image.shape[1:], device=image.device)
        height, width = image.shape[1:]
        for batch in torch.split(angles, max(_VIEWS_PER_PASS, self.backbone.block)):
            table = rotations(height, width, tuple(batch.tolist()), image.device)
            with torch.set_grad_enabled(with_map):
                views = table.views(image).detach().requires_grad_(with_map)
                latent, log_det = self.network.flow(self._features(views, self.settings.scales))
                loss = (latent.square().sum(dim=1) / 2 - log_det) / latent.shape[1]
            squares = squares + latent.detach().square().mean(dim=1).sum()
            if with_map:
                # By the pixels before rotation, so that no map need be rotated back.
                (gradient,) = torch.autograd.grad(loss.sum(), views)
                blurred = self._blur(table.gradients(gradient))
                saliency += blurred.abs().mean(dim=1).sum(dim=0)
        score = squares / count
        if not with_map:
            return score[None], score.expand(1, 1, 1)
        return score[None], F.avg_pool2d(saliency[None] / count, _STRIDE)

    def _blur(self, gradient: Tensor) -> Tensor:
        sigma = self.settings.blur
        if not sigma:
            return gradient
        from torchvision.transforms.functional import gaussian_blur  # noqa: PLC0415 - as in Backbone

        kernel = 2 * math.ceil(4 * sigma) + 1
        return torch.as_tensor(gaussian_blur(gradient, kernel, sigma))
