"""Detectors that train a network by gradient descent, on any number of workers."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ops.detectors.detector import Checkpoint, Detector, FitCounts, Fitted, MapSettings, Scores
from ops.detectors.training_checkpoint import restore, snapshot
from ops.distributed import Group
from ops.errors import UserError
from ops.features.backbone import Backbone
from ops.features.blocks import in_blocks
from ops.progress import ProgressCallback

#: Good images whose maps set the scale of maps.
_CEILING_IMAGES = 4


@dataclass(frozen=True)
class TrainingSettings(MapSettings):
    """Settings of all detectors that train a network."""

    epochs: int = 192
    """Epochs of training."""
    batch: int = 24
    """Images per training step, over all workers together."""
    lr: float = 2e-4
    """Learning rate of Adam."""
    weight_decay: float = 1e-5
    """Weight decay (L2 penalty) of Adam."""
    seed: int = 0
    """Seed of initial weights, order of images, and augmentation."""


class Stage(NamedTuple):
    """A network and how many epochs it is trained; the name appears in progress and curves."""

    name: str
    network: nn.Module
    epochs: int


class Trained(Detector):
    """A detector that trains a network on samples, which it keeps of all good images.

    A fit takes the same steps on any number of workers. The images of a step follow from the seed,
    the epoch and the images' rows; each worker computes the losses of those it holds, and losses
    are weighted such that the gradient is that of the whole step. Augmentation of an image follows
    from the seed, the epoch and its row. So fits differ by the rounding of sums alone, and a fit
    that resumes after a worker died takes the same steps.
    """

    settings: TrainingSettings

    def __init__(self, settings: TrainingSettings, backbone: Backbone) -> None:
        """A detector without a network, until `fit` or `load_state`."""
        super().__init__(settings, backbone)
        self.network: nn.Module | None = None
        self._samples: dict[int, Tensor] = {}
        self._ceiling_images: dict[int, Tensor] = {}
        self._ceiling = torch.zeros(())
        self._size = (0, 0)
        self._images = self._dropped = 0

    @abstractmethod
    def new_network(self) -> nn.Module:
        """A network with initial weights; its forward returns losses (n,) of inputs of `steps`."""

    def empty_network(self) -> nn.Module:
        """A network whose weights `load_state` will replace."""
        return self.new_network()

    def stages(self) -> Iterator[Stage]:
        """The stages of training, in order; the last network must hold all that scoring needs.

        A stage is requested when the one before it is trained. When a fit resumes, an earlier
        stage may be untrained, as the later one's checkpoint replaces its weights.
        """
        yield Stage("train", self.new_network(), self.settings.epochs)

    @abstractmethod
    def sample(self, image: Tensor, row: int) -> Tensor:
        """What training keeps of one good image (3, H, W)."""

    @abstractmethod
    def inputs(self, samples: list[tuple[int, Tensor]], epoch: int) -> Any:
        """The network's inputs for (row, sample) pairs; inputs of length 0 for no samples."""

    def steps(self, samples: list[tuple[int, Tensor]], epoch: int, of: int) -> Iterator[Any]:  # noqa: ARG002
        """The network's inputs in each step of a batch; the same number of steps on every rank.

        `samples` are this rank's (row, sample) pairs, `of` is the number of images on all ranks.
        """
        yield self.inputs(samples, epoch)

    @abstractmethod
    def score_block(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n,) and maps (n, h, w) of a block of images (n, 3, H, W), each treated alone."""

    @property
    def block(self) -> int:
        """Images of a block that is scored, padded with black ones."""
        return 1

    def training_rows(self, rows: Tensor) -> Tensor:
        """The rows to train on, out of all rows of the fit; `finish` may use the others."""
        return rows

    def prepare(self, network: nn.Module, group: Group) -> None:
        """Compute what depends on all samples, before a stage is trained. Collective."""

    def begin_epoch(self, epoch: int, rows: list[int]) -> None:
        """Called before an epoch, with this rank's rows in the order of training."""

    def learning_rate(self, epoch: int) -> float:  # noqa: ARG002 - constant without a schedule
        """The learning rate of an epoch."""
        return self.settings.lr

    def loss_weights(self, losses: Tensor, share: float, group: Group) -> Tensor:  # noqa: ARG002
        """Weights of this rank's losses (n,); the step's loss is the weighted sum. Collective.

        This rank holds `share` of the step's images. By default the loss is the mean over the step.
        """
        return losses.new_full((len(losses),), share / max(1, len(losses)))

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of all weights that require gradients."""
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        settings = self.settings
        return torch.optim.Adam(weights, lr=settings.lr, weight_decay=settings.weight_decay)

    def update(self, optimiser: torch.optim.Optimizer) -> None:
        """Update the weights by their gradients, which are equal on every rank."""
        optimiser.step()

    def add_images(self, images: Tensor, rows: Tensor) -> None:
        """Keep a sample of every image whose sample is finite."""
        for image, row in zip(images, rows.tolist(), strict=True):
            self._images += 1
            finite = bool(torch.isfinite(image).all())
            sample = self.sample(image, row) if finite else None
            if sample is None or not torch.isfinite(sample.float()).all():
                self._dropped += 1
                continue
            self._samples[row] = sample
            self._size = (image.shape[1], image.shape[2])
            if len(self._ceiling_images) < _CEILING_IMAGES or row < max(self._ceiling_images):
                self._ceiling_images[row] = image.cpu()
                lowest = sorted(self._ceiling_images.items())[:_CEILING_IMAGES]
                self._ceiling_images = dict(lowest)

    def fit(self, group: Group, progress: ProgressCallback, checkpoint: Checkpoint) -> Fitted:
        """Train all stages. The weights after the last epoch are used."""
        rows = torch.cat(group.all_gather(torch.tensor(sorted(self._samples), dtype=torch.int64)))
        rows = rows.sort().values
        if not len(rows):
            raise UserError("there is no good image with finite features to fit on")
        counts = group.all_reduce(torch.tensor([self._images, self._dropped])).tolist()
        height, width = group.all_reduce(torch.tensor(self._size), "max").tolist()
        self._size = (height, width)  # a rank without images needs it too
        rows = self.training_rows(rows)
        saved = checkpoint.read() or {}
        curves: dict[str, list[float]] = dict(saved.get("curves", {}))
        for stage in self.stages():
            self.network = stage.network.to(self.backbone.device)
            if stage.name in curves:
                continue
            resumed = saved if saved.get("stage") == stage.name else None
            curves[stage.name] = self._train(
                stage, rows, resumed, curves, group, progress, checkpoint
            )
        assert self.network is not None
        self.network.eval()
        self.finish(group)
        self._samples.clear()
        losses = {"loss" if name == "train" else f"{name}_loss": c for name, c in curves.items()}
        last = {name: curve[-1] for name, curve in losses.items()}
        return Fitted(FitCounts(images=counts[0], dropped_images=counts[1]), last, losses)

    def _train(
        self,
        stage: Stage,
        rows: Tensor,
        saved: Any,
        earlier_curves: dict[str, list[float]],
        group: Group,
        progress: ProgressCallback,
        checkpoint: Checkpoint,
    ) -> list[float]:
        """Train a stage, from its saved epoch on if there is one; the mean loss of each epoch."""
        network = stage.network
        self.prepare(network, group)
        optimiser = self.optimiser(network)
        curve = restore(saved, network, optimiser)
        model = group.parallel(network.train())
        for epoch in range(len(curve), stage.epochs):
            curve.append(self._epoch(epoch, rows, model, optimiser, group))
            progress(stage.name, epoch + 1, stage.epochs)
            if group.rank == 0:
                content = snapshot(curve, network, optimiser)
                checkpoint.write({"stage": stage.name, "curves": dict(earlier_curves), **content})
        return curve

    def _epoch(
        self,
        epoch: int,
        rows: Tensor,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        group: Group,
    ) -> float:
        """Train one epoch; its mean loss, which is equal on every rank."""
        epoch_losses: list[list[Tensor]] = []  # read at the end: a GPU need not be waited for
        for parameters in optimiser.param_groups:
            parameters["lr"] = self.learning_rate(epoch)
        batches = list(self.batches(rows, epoch))
        self.begin_epoch(epoch, [row for batch in batches for row in batch if row in self._samples])
        for batch in batches:
            mine = [(row, self._samples[row]) for row in batch if row in self._samples]
            step_losses = []
            for inputs in self.steps(mine, epoch, len(batch)):
                losses = model(inputs)
                weights = self.loss_weights(losses.detach(), len(mine) / len(batch), group)
                loss = (losses * weights).sum()
                optimiser.zero_grad(set_to_none=True)
                (loss * group.size).backward()  # gradients are averaged over ranks: losses add up
                self.update(optimiser)
                step_losses.append(loss.detach())
            epoch_losses.append(step_losses)
        total = torch.zeros(1, dtype=torch.float64)
        for batch, step_losses in zip(batches, epoch_losses, strict=True):
            total += sum(torch.stack(step_losses).tolist()) / len(step_losses) * len(batch)
        mean = float(group.all_reduce(total)) / len(rows)
        if not math.isfinite(mean):
            raise UserError(
                f"the loss of epoch {epoch + 1} is {mean}; lower the learning rate "
                f"(--{self.name}.lr), which is {self.settings.lr}"
            )
        return mean

    def finish(self, group: Group) -> None:
        """Compute what scoring needs beside the weights: here the map ceiling. Collective."""
        rows = torch.tensor(sorted(self._ceiling_images), dtype=torch.int64)
        rows = torch.cat(group.all_gather(rows))
        chosen = set(rows.sort().values[:_CEILING_IMAGES].tolist())
        ceiling = torch.zeros(1)
        for row, image in self._ceiling_images.items():
            if row in chosen:
                maps = self.score(image[None].to(self.backbone.device)).map
                ceiling = ceiling.maximum(maps.max().cpu())
        self._ceiling = group.all_reduce(ceiling, "max")[0]
        self._ceiling_images.clear()

    def score(self, images: Tensor) -> Scores:
        """Score images in blocks, as the rounding of sums depends on the size of a batch."""
        if self.network is None:
            raise ValueError("this detector is not fitted")
        return Scores(*in_blocks(lambda part: self.score_block(part[0]), [images], self.block))

    def map_ceiling(self) -> float:
        """The largest map value of a few of the good images."""
        return float(self._ceiling)

    def state(self) -> dict[str, Tensor]:
        """The network's weights and the map ceiling."""
        assert self.network is not None
        return {"ceiling": self._ceiling, **self.network.state_dict()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore weights and map ceiling."""
        self._ceiling = state["ceiling"].cpu()
        network = self.empty_network()
        network.load_state_dict({k: v for k, v in state.items() if k != "ceiling"})
        self.network = network.eval().requires_grad_(False).to(self.backbone.device)

    def batches(self, rows: Tensor, epoch: int) -> Iterator[list[int]]:
        """The shuffled rows of each batch of an epoch; the last batch may be smaller."""
        order = torch.randperm(len(rows), generator=self.generator("order", epoch))
        for batch in torch.split(rows[order], self.settings.batch):
            yield batch.tolist()

    def seed_of(self, *key: object) -> int:
        """A 64-bit number that follows from the seed and a key.

        Keys are part of a fit's result: another key gives other weights.
        """
        text = repr((self.settings.seed, *key)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")

    def generator(self, *key: object, device: str | torch.device = "cpu") -> torch.Generator:
        """A random generator seeded by `seed_of`."""
        signed = (self.seed_of(*key) + 2**63) % 2**64 - 2**63
        return torch.Generator(device).manual_seed(signed)
