"""SSNF, the self-supervised normalizing flow (Chiu 2022; Chiu and Lai, CVPR Workshops 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ops.augment import synthetic_defects
from ops.augment.synthetic_defects import Defective, Picture, rules_for
from ops.detectors.detector import Checkpoint, Fitted
from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.flow_detector import (
    FlowCost,
    FlowDetector,
    FlowSettings,
    joint_density,
    timing_probe,
)
from ops.detectors.gated_loss import gate
from ops.detectors.prefetch import prefetch
from ops.detectors.uint16_images import from_uint16
from ops.distributed import Group
from ops.features.backbone import Backbone
from ops.flows.subnets import DropoutGenerators, Subnet, stack
from ops.progress import ProgressCallback
from ops.results import overlays
from ops.storage.paths import SYNTHETIC

#: Elements of the paper's feature map, 768 x 28 x 28, that `max_nll` is for.
_PAPER_ELEMENTS = 602_112
#: Good images on the contact sheet of synthetic defects.
_SHEET_IMAGES = 8


@dataclass(frozen=True)
class SsnfSettings(FlowSettings):
    """Settings of SSNF; defaults are those of the author's code."""

    epochs: int = 500
    """Epochs of training; the author stops by metrics on test images instead."""
    batch: int = 16
    """Good images per training step, over all workers together; each is paired with a synthetic
    image."""
    lr: float = 2e-4
    """Learning rate of Adam in the first epoch; it then falls and rises along a cosine."""
    lowest_lr: float = 1e-6
    """Lowest learning rate of the cosine."""
    turn: int = 100
    """Epochs until the learning rate is lowest."""
    blocks: int = 10
    """Coupling blocks of each layer's flow."""
    hidden: int = 128
    """Hidden channels of a subnet."""
    stack: str = "conv,attn"
    """Residual layers of a subnet, comma-separated: conv and attn, any number in any order. The
    paper stacks them dynamically; the author's code has these two."""
    heads: int = 4
    """Heads of each attention layer."""
    dropout: float = 0.2
    """Dropout rate of channels after convolutions and of attention weights."""
    sharpen: float = 0.5
    """Probability that a training image is sharpened. Synthetic ones are sharpened too, which is
    our choice."""
    synthetic: bool = True
    """Also train on images with synthetic defects, which the loss makes unlikely."""
    category: str = ""
    """Category whose rules synthetic defects follow (carpet, bottle, screw, ...); empty = the
    product's name."""
    max_nll: float = 1e5
    """Synthetic images with a larger negative log-likelihood, in nats, do not enter the loss; 0 =
    any may, and then the loss has no lower end, so that flows may diverge. The value is for the
    paper's 602,112 map elements; it is scaled in proportion to the number of elements (our choice):
    0.17 nats an element, which flows on features of small networks do not reach in few epochs. Then
    synthetic images change nothing, and the figure `pushed` of the fit is 0."""
    density: Literal["channels", "joint"] = "channels"
    """Density of a position. channels: the mean of its channels' densities, as in the author's
    code, in which a channel counts the same however far it is off; joint: their geometric mean, as
    in FastFlow."""
    sources: int = 0
    """Good images from which patches for synthetic defects are taken; each worker holds them in
    memory. 0 = all."""
    defect_threads: int = 1
    """Threads per worker that make synthetic images ahead of their step; 0 = none."""

    @property
    def layers(self) -> list[str]:
        """The residual layers of `stack` as a list."""
        return [layer.strip() for layer in self.stack.split(",") if layer.strip()]

    def __post_init__(self) -> None:
        """Raises SettingError if settings contradict each other."""
        _subnets(self, DropoutGenerators())


class Ssnf(FlowDetector):
    """Flows that make good images likely and synthetic defects unlikely.

    Subnets stack convolution and self-attention. The paper has one layer; for several, likelihoods
    are multiplied and densities averaged, as in FastFlow (our choice). A synthetic image follows
    from the seed, the epoch and the row of its good image, whichever worker makes it.
    """

    name = "ssnf"
    Settings = SsnfSettings
    settings: SsnfSettings

    def __init__(self, settings: SsnfSettings, backbone: Backbone) -> None:
        """A detector without flows, until `fit` or `load_state`."""
        super().__init__(settings, backbone)
        self._generators = DropoutGenerators()
        self._sources: dict[int, Tensor] = {}
        self._synthetic_images: Iterator[Defective] = iter(())
        self._channels = 1
        self._changed = torch.empty(0, dtype=torch.bool)
        self._pushed = 0

    @classmethod
    def estimate(cls, settings: SsnfSettings, fit_size: FitSize) -> ResourceEstimate:
        """Memory of the flows, most of which is activations of a training step."""
        attentions, convolutions = (settings.layers.count(kind) for kind in ("attn", "conv"))
        activations = []
        for channels, height, width in fit_size.layers:
            hidden = settings.hidden * (1 + 2 * convolutions + 6 * attentions)
            # Attention weights: not kept without dropout; with it, before and after, and its mask.
            pairs = settings.heads * height * width * (2.25 if settings.dropout else 0)
            activations.append(5 + (hidden + attentions * pairs) / channels)
        cost = FlowCost.of(fit_size, _subnets(settings, DropoutGenerators()), settings, activations)
        step = min(settings.batch, fit_size.images_per_worker) * (2 if settings.synthetic else 1)
        sources = (
            min(fit_size.images, settings.sources or fit_size.images) if settings.synthetic else 0
        )
        return ResourceEstimate(
            vectors=fit_size.images * sum(h * w for _, h, w in fit_size.layers),
            kept=0,
            fit_bytes=cost.fit_bytes(fit_size, step) + sources * 2 * 3 * fit_size.pixels,
            fit_host_bytes=fit_size.pixel_bytes + sources * 2 * 3 * fit_size.pixels,
            score_bytes=cost.score_bytes,
            model_bytes=cost.model_bytes,
            remedy="lower --ssnf.batch or --ssnf.sources, or set --ssnf.dropout 0",
        )

    @classmethod
    def timing_probe(cls, settings: SsnfSettings, fit_size: FitSize) -> TimingProbe:
        """A training step on the features of one image; a synthetic image counts as another."""
        views = 2 if settings.synthetic else 1
        return timing_probe(settings, fit_size, _subnets(settings, DropoutGenerators()), views)

    def subnets(self) -> list[Subnet]:
        """The same subnet for every coupling block."""
        return _subnets(self.settings, self._generators)

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """Adam with the author's epsilon."""
        s = self.settings
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        return torch.optim.Adam(weights, lr=s.lr, eps=1e-4, weight_decay=s.weight_decay)

    def learning_rate(self, epoch: int) -> float:
        """A cosine from `lr` to `lowest_lr` and back, without end."""
        s = self.settings
        return s.lowest_lr + (s.lr - s.lowest_lr) * (1 + math.cos(math.pi * epoch / s.turn)) / 2

    def prepare(self, network: nn.Module, group: Group) -> None:
        """Send the images that patches are taken from to every rank."""
        super().prepare(network, group)
        if self.settings.synthetic:
            channels = max([1, *(len(sample) for sample in self._samples.values())])
            self._channels = int(group.all_reduce(torch.tensor([channels]), "max"))
            rows = torch.cat(group.all_gather(torch.tensor(sorted(self._samples)).long()))
            chosen = sorted(rows.tolist(), key=lambda row: self.seed_of("source", row))
            self._sources = share_samples(
                self._samples, chosen[: self.settings.sources or None], group
            )

    def begin_epoch(self, epoch: int, rows: list[int]) -> None:
        """Start to make the epoch's synthetic images."""
        self._pushed = 0
        if self.settings.synthetic:
            self._synthetic_images = prefetch(
                lambda row: self.synthetic(self._samples[row], row, epoch),
                rows,
                self.settings.defect_threads,
                2 * self.settings.batch,
            )

    def synthetic(self, sample: Tensor, row: int, epoch: int) -> Defective:
        """An image with synthetic defects made of patches of another random image.

        The author takes the image that was loaded before instead. If there is only one image, it
        provides its own patches (our choice).
        """
        rng = np.random.default_rng(self.seed_of("defects", epoch, row))
        others = [other for other in self._sources if other != row] or [row]
        source = self._sources.get(others[int(rng.integers(len(others)))], sample)
        rules = rules_for(self.settings.category or self.product)
        return synthetic_defects.make(self._picture(sample), self._picture(source), rules, rng)

    def _picture(self, sample: Tensor) -> Picture:
        """A sample (1 or 3, H, W) as floats in [0, 1]; in colour if any image is."""
        shape = (self._channels, *sample.shape[1:])
        return np.broadcast_to(sample.numpy(), shape).astype(np.float64) / 65535

    def inputs(self, samples: list[tuple[int, Tensor]], epoch: int) -> list[Tensor]:
        """Features of good images, then of as many synthetic ones."""
        device = self.backbone.device
        images = [(("good", epoch, row), from_uint16(sample)) for row, sample in samples]
        if self.settings.synthetic:
            made = [next(self._synthetic_images) for _ in samples]
            self._changed = torch.tensor([bool(m.mask.any()) for m in made], dtype=torch.bool)
            pictures = [torch.from_numpy(m.picture).float().expand(3, -1, -1) for m in made]
            images += [
                (("synthetic", epoch, row), picture)
                for (row, _), picture in zip(samples, pictures, strict=True)
            ]
        self._generators.per_image = [
            self.generator("dropout", *key, device=device) for key, _ in images
        ]
        sharpened = [self._sharpen(image, *key) for key, image in images]
        return self.features(torch.stack(sharpened) if sharpened else self.images([]))

    def _sharpen(self, image: Tensor, *key: object) -> Tensor:
        from torchvision.transforms.functional import adjust_sharpness  # noqa: PLC0415 - as in Backbone

        if float(torch.rand((), generator=self.generator("sharpen", *key))) < self.settings.sharpen:
            return torch.as_tensor(adjust_sharpness(image, 2))
        return image

    def loss_weights(self, losses: Tensor, share: float, group: Group) -> Tensor:
        """The gated loss; see `gate`."""
        if not self.settings.synthetic:
            return super().loss_weights(losses, share, group)
        assert self.network is not None
        good, synthetic = losses.cpu().chunk(2) if len(losses) else (losses.cpu(), losses.cpu())
        max_nll = self.settings.max_nll * self.network.elements / _PAPER_ELEMENTS or math.inf
        gated = gate(good, synthetic, self._changed[: len(synthetic)], max_nll, group)
        self._pushed += gated.pushed
        return gated.weights.to(losses)

    def fit(self, group: Group, progress: ProgressCallback, checkpoint: Checkpoint) -> Fitted:
        """Train, and add a contact sheet of synthetic defects."""
        fitted = super().fit(group, progress, checkpoint)
        if self.settings.synthetic:
            sources = sorted(self._sources.items())[:_SHEET_IMAGES]
            pairs = [(self._picture(s), self.synthetic(s, row, 0)) for row, s in sources]
            self._sources.clear()
            fitted = fitted._replace(
                fit_metrics=fitted.fit_metrics | {"pushed": self._pushed},
                pictures={SYNTHETIC: overlays.defects_sheet(pairs)},
            )
        return fitted

    def density(self, latent: Tensor) -> Tensor:
        """The mean over channels of exp(-z^2 / 2): normal densities relative to their maximum."""
        if self.settings.density == "joint":
            return joint_density(latent)
        return (-latent.square() / 2).exp().mean(dim=1)


def _subnets(settings: SsnfSettings, generators: DropoutGenerators) -> list[Subnet]:
    s = settings
    return [stack(s.layers, s.hidden, s.heads, s.dropout, generators)] * s.blocks


def share_samples(samples: dict[int, Tensor], rows: list[int], group: Group) -> dict[int, Tensor]:
    """The samples of some rows, on every rank, whichever ranks hold them. Collective."""
    mine = sorted(set(rows) & set(samples))
    if group.size == 1:
        return {row: samples[row] for row in mine}
    numbers = torch.cat(group.all_gather(torch.tensor(mine).long())).tolist()
    sizes = torch.tensor([samples[row].shape for row in mine] or [[0, 0, 0]])
    channels, height, width = group.all_reduce(sizes.amax(dim=0), "max").tolist()
    stacked = torch.empty(len(mine), channels, height, width, dtype=torch.uint16)
    for index, row in enumerate(mine):
        stacked[index] = samples[row].expand(channels, -1, -1)
    gathered = group.all_gather(stacked.view(torch.uint8))  # gloo has no 16-bit integers
    everyone = torch.cat(gathered).view(torch.uint16)
    return dict(sorted(zip(numbers, everyone, strict=True)))
