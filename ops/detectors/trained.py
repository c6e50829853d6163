"""Fitting by gradient descent: the same steps whatever the number of workers."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ops.detectors.detector import (
    Checkpoint,
    Detector,
    Fitted,
    MapSettings,
    Scores,
)
from ops.distributed import Group
from ops.errors import UserError
from ops.features.backbone import Backbone
from ops.progress import ProgressCallback

#: Images whose maps say what maps of good images look like.
_PROBES = 4


@dataclass(frozen=True)
class TrainingSettings(MapSettings):
    """What all trained detectors can be told."""

    epochs: int = 192
    """How often training goes over all images."""
    batch: int = 24
    """Images of a step, over all workers together."""
    lr: float = 2e-4
    """Learning rate of Adam."""
    weight_decay: float = 1e-5
    """Adam's L2 penalty."""
    seed: int = 0
    """Of first weights, order, and transformations."""


class Stage(NamedTuple):
    """A network to train, for how many epochs; the name is for people and curves."""

    name: str
    network: nn.Module
    epochs: int


class Trained(Detector):
    """A method that trains a network, over epochs, on samples that it keeps of the good images.

    Which images make a step follows from the seed, the epoch and the images' numbers alone; each
    worker takes those it holds, and losses are weighted so that the gradient is that of the step's
    loss, on any number of workers. An image's transformations follow from its number and the epoch.
    So workers change nothing but the order of sums; a fit that goes on after a lost worker takes
    the same steps again.
    """

    #: Rounding only, but training steps amplify it.
    drift = 1e-3
    settings: TrainingSettings

    def __init__(self, settings: TrainingSettings, backbone: Backbone) -> None:
        """Untrained."""
        super().__init__(settings, backbone)
        self.network: nn.Module | None = None
        self._samples: dict[int, Tensor] = {}
        self._probes: dict[int, Tensor] = {}
        self._ceiling = torch.zeros(())
        self._size = (0, 0)
        self._images = self._dropped = 0

    @abstractmethod
    def new_network(self) -> nn.Module:
        """An untrained network, seeded; its forward gives the losses (n,) of each of `steps`."""

    def empty_network(self) -> nn.Module:
        """A network whose weights are about to be replaced."""
        return self.new_network()

    def stages(self) -> Iterator[Stage]:
        """What is trained, one after the other; the last network must hold all that is needed.

        The next one is asked for when the one before is trained, or lies in the notes of the next.
        """
        yield Stage("train", self.new_network(), self.settings.epochs)

    @abstractmethod
    def sample(self, image: Tensor, row: int) -> Tensor:
        """What is kept of one good image (3, H, W) for training."""

    @abstractmethod
    def inputs(self, samples: list[tuple[int, Tensor]], epoch: int) -> Any:
        """The network's inputs of some rows' samples, as many of each; (0, ...) of none."""

    def steps(self, samples: list[tuple[int, Tensor]], epoch: int, of: int) -> Iterator[Any]:  # noqa: ARG002
        """What the network gets in each step that a batch makes: as many steps on every rank.

        `samples` are this rank's, `of` as many as all ranks hold.
        """
        yield self.inputs(samples, epoch)

    @abstractmethod
    def score_one(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score () and map (h, w) of one image (3, H, W)."""

    def training_rows(self, rows: Tensor) -> Tensor:
        """Which rows to train on, of all that there are; the others are there for `finish`."""
        return rows

    def prepare(self, network: nn.Module, group: Group) -> None:
        """Collective: what an untrained network must know of all samples."""

    def begin(self, epoch: int, rows: list[int]) -> None:
        """An epoch begins, which takes this rank's images in this order."""

    def rate(self, epoch: int) -> float:  # noqa: ARG002 - constant unless a method has a schedule
        """The learning rate of an epoch."""
        return self.settings.lr

    def weights(self, losses: Tensor, share: float, group: Group) -> Tensor:  # noqa: ARG002
        """Collective: what each of this rank's losses (n,) counts in the step's loss, their sum.

        This rank holds `share` of the step's images. Here the loss is the mean over the step.
        """
        return losses.new_full((len(losses),), share / max(1, len(losses)))

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """Over the weights that need gradients."""
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        settings = self.settings
        return torch.optim.Adam(weights, lr=settings.lr, weight_decay=settings.weight_decay)

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """Move the weights along their gradients, which are the same on every rank."""
        optimiser.step()

    def add_images(self, images: Tensor, rows: Tensor) -> None:
        """Keep a sample of every image."""
        for image, row in zip(images, rows.tolist(), strict=True):
            self._images += 1
            finite = bool(torch.isfinite(image).all())
            sample = self.sample(image, row) if finite else None
            if sample is None or not torch.isfinite(sample.float()).all():
                self._dropped += 1
                continue
            self._samples[row] = sample
            self._size = (image.shape[1], image.shape[2])
            if len(self._probes) < _PROBES or row < max(self._probes):
                self._probes[row] = image.cpu()
                self._probes = dict(sorted(self._probes.items())[:_PROBES])

    def fit(self, group: Group, watch: ProgressCallback, checkpoint: Checkpoint) -> Fitted:
        """Train for all epochs; the last one counts, as nothing says which is best."""
        rows = torch.cat(group.all_gather(torch.tensor(sorted(self._samples), dtype=torch.int64)))
        rows = rows.sort().values
        if not len(rows):
            raise UserError("there is no good image with finite features to fit on")
        counts = group.all_reduce(torch.tensor([self._images, self._dropped])).tolist()
        height, width = group.all_reduce(torch.tensor(self._size), "max").tolist()
        self._size = (height, width)  # a rank without images must know it too
        rows = self.training_rows(rows)
        noted = checkpoint.read() or {}
        curves: dict[str, list[float]] = dict(noted.get("curves", {}))
        for stage in self.stages():
            self.network = stage.network.to(self.backbone.device)
            if stage.name in curves:
                continue
            going_on = noted if noted.get("stage") == stage.name else None
            curves[stage.name] = self._train(
                stage, rows, going_on, curves, group, watch, checkpoint
            )
        assert self.network is not None
        self.network.eval()
        self.finish(group)
        self._samples.clear()
        said = {"loss" if name == "train" else f"{name}_loss": c for name, c in curves.items()}
        last = {name: curve[-1] for name, curve in said.items()}
        return Fitted({"images": counts[0], "dropped_images": counts[1], **last}, said)

    def _train(
        self,
        stage: Stage,
        rows: Tensor,
        noted: Any,
        before: dict[str, list[float]],
        group: Group,
        watch: ProgressCallback,
        checkpoint: Checkpoint,
    ) -> list[float]:
        """The losses of a stage's epochs, from what is noted of it on."""
        network = stage.network
        self.prepare(network, group)
        optimiser = self.optimiser(network)
        curve = _restore(noted, network, optimiser)
        model = group.parallel(network.train())
        for epoch in range(len(curve), stage.epochs):
            curve.append(self._epoch(epoch, rows, model, optimiser, group))
            watch(stage.name, epoch + 1, stage.epochs)
            if group.rank == 0:
                found = _noted(curve, network, optimiser)
                checkpoint.write({"stage": stage.name, "curves": dict(before), **found})
        return curve

    def _epoch(
        self,
        epoch: int,
        rows: Tensor,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        group: Group,
    ) -> float:
        """One pass over all images; the mean loss, which is the same on every rank."""
        total = torch.zeros(1, dtype=torch.float64)
        for parameters in optimiser.param_groups:
            parameters["lr"] = self.rate(epoch)
        batches = list(self.batches(rows, epoch))
        self.begin(epoch, [row for batch in batches for row in batch if row in self._samples])
        for batch in batches:
            mine = [(row, self._samples[row]) for row in batch if row in self._samples]
            found = []
            for inputs in self.steps(mine, epoch, len(batch)):
                losses = model(inputs)
                weights = self.weights(losses.detach(), len(mine) / len(batch), group)
                loss = (losses * weights).sum()
                optimiser.zero_grad(set_to_none=True)
                (loss * group.size).backward()  # gradients are averaged over ranks, losses add up
                self.step(optimiser)
                found.append(float(loss.detach()))
            total += sum(found) / len(found) * len(batch)
        mean = float(group.all_reduce(total)) / len(rows)
        if not math.isfinite(mean):
            told = f"the loss of epoch {epoch + 1} is {mean}"
            raise UserError(f"{told}; lower the method's lr, which is {self.settings.lr}")
        return mean

    def finish(self, group: Group) -> None:
        """Collective: how large maps of some of the good images get."""
        rows = torch.cat(group.all_gather(torch.tensor(sorted(self._probes), dtype=torch.int64)))
        chosen = set(rows.sort().values[:_PROBES].tolist())
        found = torch.zeros(1)
        for row, image in self._probes.items():
            if row in chosen:
                drawn = self.score(image[None].to(self.backbone.device)).map
                found = found.maximum(drawn.max().cpu())
        self._ceiling = group.all_reduce(found, "max")[0]
        self._probes.clear()

    def score(self, images: Tensor) -> Scores:
        """Images one by one, as sums over a batch depend on its size."""
        if self.network is None:
            raise ValueError("this detector is not fitted")
        found = [self.score_one(image) for image in images]
        return Scores(torch.stack([s for s, _ in found]), torch.stack([m for _, m in found]))

    def map_ceiling(self) -> float:
        """The largest map value of some of the good images."""
        return float(self._ceiling)

    def state(self) -> dict[str, Tensor]:
        """The network's weights, and the largest map value of some good images."""
        assert self.network is not None
        return {"ceiling": self._ceiling, **self.network.state_dict()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights over."""
        self._ceiling = state["ceiling"].cpu()
        network = self.empty_network()
        network.load_state_dict({k: v for k, v in state.items() if k != "ceiling"})
        self.network = network.eval().requires_grad_(False).to(self.backbone.device)

    def batches(self, rows: Tensor, epoch: int) -> Iterator[list[int]]:
        """The steps of an epoch: row numbers, shuffled; the last may be smaller."""
        order = torch.randperm(len(rows), generator=self.generator("order", epoch))
        for part in torch.split(rows[order], self.settings.batch):
            yield part.tolist()

    def key(self, *key: object) -> int:
        """A number of 64 bits that follows from the seed and a key alone."""
        text = repr((self.settings.seed, *key)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")

    def generator(self, *key: object, device: str | torch.device = "cpu") -> torch.Generator:
        """Randomness that follows from the seed and a key alone."""
        signed = (self.key(*key) + 2**63) % 2**64 - 2**63
        return torch.Generator(device).manual_seed(signed)


def to_sixteen(image: Tensor) -> Tensor:
    """An image (3, H, W) in [0, 1] as 16-bit integers, of one channel if all are equal."""
    grey = bool((image == image[:1]).all())
    return (image[:1] if grey else image).mul(65535).round().cpu().to(torch.uint16)


def from_sixteen(sample: Tensor) -> Tensor:
    """Undo `to_sixteen`: (3, H, W) in [0, 1]."""
    return (sample.float() / 65535).expand(3, -1, -1)


def _noted(curve: list[float], network: nn.Module, optimiser: torch.optim.Optimizer) -> Any:
    states = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
    return {"curve": list(curve), **_copied(states)}


def _copied(state: Any) -> Any:
    """On the CPU, where any process can read it, as training goes on while it is on its way."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def _restore(noted: Any, network: nn.Module, optimiser: torch.optim.Optimizer) -> list[float]:
    if not noted:
        return []
    network.load_state_dict(noted["network"])
    optimiser.load_state_dict(_copied(noted["optimiser"]))  # it keeps what it is given
    return list(noted["curve"])
