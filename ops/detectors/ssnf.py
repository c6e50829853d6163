"""SSNF, the self-supervised normalizing flow (Chiu 2022; Chiu and Lai, CVPR Workshops 2023)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import adjust_sharpness

from ops.augment import synthetic_defects
from ops.augment.synthetic_defects import Defective, Picture, rules_for
from ops.detectors.detector import Checkpoint, Fitted
from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.flow_detector import Cost, FlowDetector, FlowSettings, timing_probe
from ops.detectors.uint16_images import from_uint16
from ops.distributed import Group
from ops.features.backbone import Backbone
from ops.flows.subnets import DropoutGenerators, Subnet, stack
from ops.progress import ProgressCallback
from ops.storage.paths import SYNTHETIC

T = TypeVar("T")
K = TypeVar("K")
#: Elements of the map that the paper's cut is for: 768 x 28 x 28.
_PAPERS = 602_112
#: Good pictures whose synthetic defects are shown.
_SHOWN = 8


@dataclass(frozen=True)
class SsnfSettings(FlowSettings):
    """Settings of SSNF; defaults are those of the author's code."""

    epochs: int = 500
    """How often training goes over all images; the author stops by test images instead."""
    batch: int = 16
    """Good images of a step, over all workers together; each comes with a synthetic defect."""
    lr: float = 2e-4
    """Learning rate of Adam in the first epoch; it then falls and rises as a cosine."""
    lowest_lr: float = 1e-6
    """Where it turns."""
    turn: int = 100
    """Epochs until it turns."""
    blocks: int = 10
    """Couplings of each layer's flow."""
    hidden: int = 128
    """Channels within a subnet."""
    stack: str = "conv,attn"
    """Residual layers of a subnet, any number in any order. The paper speaks of stacking them
    dynamically; the author's code has these two."""
    heads: int = 4
    """Of each attention."""
    dropout: float = 0.2
    """Of channels behind convolutions, and of weights of attention."""
    sharpen: float = 0.5
    """Share of training images that are sharpened; of synthetic ones too, which is our choice."""
    synthetic: bool = True
    """Whether training also pushes synthetic defects away."""
    category: str = ""
    """Whose defects to make (carpet, bottle, screw, ...); default: the product's name."""
    max_nll: float = 1e5
    """Synthetic images beyond so many nats are let go. It is for the paper's 602,112 elements; for
    other sizes of the maps it is scaled alike, which is our choice."""
    sources: int = 0
    """Good images that patches are taken from; each worker holds them. 0 = all."""
    defect_threads: int = 1
    """Threads of each worker that make synthetic defects ahead of the steps; 0 = none."""

    @property
    def layers(self) -> list[str]:
        """Residual layers of a subnet."""
        return [layer.strip() for layer in self.stack.split(",") if layer.strip()]

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        _subnets(self, DropoutGenerators())


class Ssnf(FlowDetector):
    """Flows that make good images likely and synthetic defects unlikely.

    Subnets stack convolution and self-attention. A position's density is the mean over channels of
    each one's own. The paper has one layer; of several, likelihoods are multiplied and densities
    averaged, as FastFlow does, which is our choice. A synthetic image follows from the seed, the
    epoch and the number of its good image alone, whichever worker makes it.
    """

    name = "ssnf"
    Settings = SsnfSettings
    settings: SsnfSettings

    def __init__(self, settings: SsnfSettings, backbone: Backbone) -> None:
        """Untrained."""
        super().__init__(settings, backbone)
        self._generators = DropoutGenerators()
        self._sources: dict[int, Tensor] = {}
        self._made: Iterator[Defective] = iter(())
        self._channels = 1
        self._changed = torch.empty(0, dtype=torch.bool)
        self._pushed = 0

    @classmethod
    def estimate(cls, settings: SsnfSettings, load: FitSize) -> ResourceEstimate:
        """What the flows take; what a step keeps is most of it."""
        attentions, convolutions = (settings.layers.count(kind) for kind in ("attn", "conv"))
        kept = []
        for channels, height, width in load.layers:
            within = settings.hidden * (1 + 2 * convolutions + 6 * attentions)
            # Of each pair of positions and head, once or with what dropout left of it and a mask.
            pairs = settings.heads * height * width * (2.25 if settings.dropout else 0)
            kept.append(5 + (within + attentions * pairs) / channels)
        cost = Cost.of(load, _subnets(settings, DropoutGenerators()), settings.norm, kept)
        step = min(settings.batch, load.images_per_worker) * (2 if settings.synthetic else 1)
        sources = min(load.images, settings.sources or load.images) if settings.synthetic else 0
        return ResourceEstimate(
            vectors=load.images * sum(h * w for _, h, w in load.layers),
            kept=0,
            fit_bytes=cost.fit_bytes(load, step) + sources * 2 * 3 * load.size**2,
            score_bytes=cost.score_bytes,
            model_bytes=cost.model_bytes,
            remedy="lower --ssnf.batch or --ssnf.sources, or set --ssnf.dropout 0",
        )

    @classmethod
    def timing_probe(cls, settings: SsnfSettings, load: FitSize) -> TimingProbe:
        """A step of one image, behind the backbone."""
        times = 2 if settings.synthetic else 1
        return timing_probe(settings, load, _subnets(settings, DropoutGenerators()), times)

    def subnets(self) -> list[Subnet]:
        """All alike."""
        return _subnets(self.settings, self._generators)

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """As the author sets it."""
        s = self.settings
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        return torch.optim.Adam(weights, lr=s.lr, eps=1e-4, weight_decay=s.weight_decay)

    def learning_rate(self, epoch: int) -> float:
        """Down to the lowest and up again, a cosine."""
        s = self.settings
        return s.lowest_lr + (s.lr - s.lowest_lr) * (1 + math.cos(math.pi * epoch / s.turn)) / 2

    def prepare(self, network: nn.Module, group: Group) -> None:  # noqa: ARG002
        """Every rank gets the images that patches are taken from."""
        if self.settings.synthetic:
            channels = max([1, *(len(sample) for sample in self._samples.values())])
            self._channels = int(group.all_reduce(torch.tensor([channels]), "max"))
            rows = torch.cat(group.all_gather(torch.tensor(sorted(self._samples)).long()))
            chosen = sorted(rows.tolist(), key=lambda row: self.seed_of("source", row))
            self._sources = shared(self._samples, chosen[: self.settings.sources or None], group)

    def begin_epoch(self, epoch: int, rows: list[int]) -> None:
        """Start to make this epoch's synthetic defects."""
        self._pushed = 0
        if self.settings.synthetic:
            self._made = ahead(
                lambda row: self.synthetic(self._samples[row], row, epoch),
                rows,
                self.settings.defect_threads,
                2 * self.settings.batch,
            )

    def synthetic(self, sample: Tensor, row: int, epoch: int) -> Defective:
        """An image with synthetic defects, of patches of any other one.

        The author takes the one that was loaded before. Of the only one there is, patches are its
        own. Both are our choices.
        """
        rng = np.random.default_rng(self.seed_of("defects", epoch, row))
        others = [other for other in self._sources if other != row] or [row]
        source = self._sources.get(others[int(rng.integers(len(others)))], sample)
        rules = rules_for(self.settings.category or self.product)
        return synthetic_defects.make(self._picture(sample), self._picture(source), rules, rng)

    def _picture(self, sample: Tensor) -> Picture:
        """As floats, in colour if any image is."""
        shape = (self._channels, *sample.shape[1:])
        return np.broadcast_to(sample.numpy(), shape).astype(np.float64) / 65535

    def inputs(self, samples: list[tuple[int, Tensor]], epoch: int) -> list[Tensor]:
        """Features of good images, then of as many synthetic ones."""
        device = self.backbone.device
        images = [(("good", epoch, row), from_uint16(sample)) for row, sample in samples]
        if self.settings.synthetic:
            made = [next(self._made) for _ in samples]
            self._changed = torch.tensor([bool(m.mask.any()) for m in made], dtype=torch.bool)
            pictures = [torch.from_numpy(m.picture).float().expand(3, -1, -1) for m in made]
            images += [
                (("synthetic", epoch, row), picture)
                for (row, _), picture in zip(samples, pictures, strict=True)
            ]
        self._generators.per_image = [
            self.generator("dropout", *key, device=device) for key, _ in images
        ]
        seen = [self._sharpened(image, *key) for key, image in images]
        return self.features(torch.stack(seen) if seen else self.images([]))

    def _sharpened(self, image: Tensor, *key: object) -> Tensor:
        if float(torch.rand((), generator=self.generator("sharpen", *key))) < self.settings.sharpen:
            return torch.as_tensor(adjust_sharpness(image, 2))
        return image

    def loss_weights(self, losses: Tensor, share: float, group: Group) -> Tensor:
        """The gated loss, over all ranks."""
        if not self.settings.synthetic:
            return super().loss_weights(losses, share, group)
        assert self.network is not None
        good, synthetic = losses.cpu().chunk(2) if len(losses) else (losses.cpu(), losses.cpu())
        cut = self.settings.max_nll * self.network.elements / _PAPERS
        gated = gate(good, synthetic, self._changed[: len(synthetic)], cut, group)
        self._pushed += gated.pushed
        return gated.weights.to(losses)

    def fit(self, group: Group, watch: ProgressCallback, checkpoint: Checkpoint) -> Fitted:
        """Train, and show what was trained against."""
        said = super().fit(group, watch, checkpoint)
        if self.settings.synthetic:
            shown = sorted(self._sources.items())[:_SHOWN]
            pairs = [(self._picture(s), self.synthetic(s, row, 0)) for row, s in shown]
            self._sources.clear()
            said = said._replace(
                fit_metrics=said.fit_metrics | {"pushed": self._pushed},
                pictures={SYNTHETIC: synthetic_defects.contact_sheet(pairs)},
            )
        return said

    def density(self, latent: Tensor) -> Tensor:
        """The mean over channels of normal densities, of which 1 is the highest here."""
        return (-latent.square() / 2).exp().mean(dim=0)


def _subnets(settings: SsnfSettings, generators: DropoutGenerators) -> list[Subnet]:
    s = settings
    return [stack(s.layers, s.hidden, s.heads, s.dropout, generators)] * s.blocks


class Gated(NamedTuple):
    """What each loss of a rank counts, good ones first, and the synthetic ones pushed on all."""

    weights: Tensor
    pushed: int


def gate(good: Tensor, synthetic: Tensor, changed: Tensor, cut: float, group: Group) -> Gated:
    """Collective: weights (n + m,) of -log p of good (n,) and synthetic (m,) images in a step.

    Pushed away are synthetic images that are likelier than the worst good one of the step, on
    whichever rank it is, and below `cut`; the loss is then half the mean of the good ones less half
    the mean of those, else the mean of the good ones. A synthetic image that did not change is none
    (our choice). So the gate is the same for any split of a step over ranks.
    """
    worst = good.max() if len(good) else torch.tensor(-torch.inf)
    worst = group.all_reduce(worst.reshape(1).double(), "max")[0]
    keep = changed & (synthetic.double() < min(float(worst), cut))
    counts = group.all_reduce(torch.tensor([len(good), int(keep.sum())]))
    images, pushed = counts.tolist()
    if not pushed:
        return Gated(torch.cat([torch.full_like(good, 1 / images), keep.to(good)]), 0)
    of_good = torch.full_like(good, 0.5 / images)
    return Gated(torch.cat([of_good, keep.to(good) * (-0.5 / pushed)]), pushed)


def shared(samples: dict[int, Tensor], rows: list[int], group: Group) -> dict[int, Tensor]:
    """Collective: the samples of some rows, whichever rank holds them, on every rank."""
    mine = sorted(set(rows) & set(samples))
    if group.size == 1:
        return {row: samples[row] for row in mine}
    numbers = torch.cat(group.all_gather(torch.tensor(mine).long())).tolist()
    sizes = torch.tensor([samples[row].shape for row in mine] or [[0, 0, 0]])
    channels, height, width = group.all_reduce(sizes.amax(dim=0), "max").tolist()
    stacked = torch.empty(len(mine), channels, height, width, dtype=torch.uint16)
    for place, row in enumerate(mine):
        stacked[place] = samples[row].expand(channels, -1, -1)
    gathered = group.all_gather(stacked.view(torch.uint8))  # gloo knows no 16-bit integers
    found = torch.cat(gathered).view(torch.uint16)
    return dict(sorted(zip(numbers, found, strict=True)))


def ahead(make: Callable[[K], T], keys: Iterable[K], threads: int, depth: int) -> Iterator[T]:
    """What is made of each key, in order, by threads that are `depth` ahead at most."""
    if not threads:
        yield from map(make, keys)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for key in keys:
                waiting.append(pool.submit(make, key))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
