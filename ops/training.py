"""Fitting by gradient descent: the same steps whatever the number of workers."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ops.backbone import Backbone
from ops.group import Group
from ops.method import Fitted, MapSettings, Method, Notes, Watch


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


class Trained(Method):
    """A method that trains a network, over epochs, on samples that it keeps of the good images.

    Which images make a step follows from the seed, the epoch and the images' numbers alone; each
    worker takes those it holds, and losses are weighted so that the gradient is the mean over the
    step, on any number of workers. An image's transformations follow from its number and the epoch.
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
        self._images = self._dropped = 0

    @abstractmethod
    def new_network(self) -> nn.Module:
        """An untrained network, seeded; its forward gives the losses (n,) of `inputs`."""

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

    def training_rows(self, rows: Tensor) -> Tensor:
        """Which rows to train on, of all that there are; the others are there for `finish`."""
        return rows

    def prepare(self, network: nn.Module, group: Group) -> None:
        """Collective: what an untrained network must know of all samples."""

    @abstractmethod
    def finish(self, group: Group) -> None:
        """Collective: what is left to do with the trained network."""

    def optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """Over the weights that need gradients."""
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        settings = self.settings
        return torch.optim.Adam(weights, lr=settings.lr, weight_decay=settings.weight_decay)

    def gather(self, images: Tensor, rows: Tensor) -> None:
        """Keep a sample of every image."""
        for image, row in zip(images, rows.tolist(), strict=True):
            self._images += 1
            sample = self.sample(image, row) if torch.isfinite(image).all() else None
            if sample is not None and torch.isfinite(sample.float()).all():
                self._samples[row] = sample
            else:
                self._dropped += 1

    def fit(self, group: Group, watch: Watch, notes: Notes) -> Fitted:
        """Train for all epochs; the last one counts, as nothing says which is best."""
        rows = torch.cat(group.all_gather(torch.tensor(sorted(self._samples), dtype=torch.int64)))
        rows = rows.sort().values
        if not len(rows):
            raise ValueError("there is no good image with finite features to fit on")
        counts = group.all_reduce(torch.tensor([self._images, self._dropped])).tolist()
        rows = self.training_rows(rows)
        noted = notes.read() or {}
        curves: dict[str, list[float]] = dict(noted.get("curves", {}))
        for stage in self.stages():
            self.network = stage.network.to(self.backbone.device)
            if stage.name in curves:
                continue
            going_on = noted if noted.get("stage") == stage.name else None
            curves[stage.name] = self._train(stage, rows, going_on, curves, group, watch, notes)
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
        watch: Watch,
        notes: Notes,
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
                notes.write({"stage": stage.name, "curves": dict(before), **found})
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
        for batch in self.batches(rows, epoch):
            mine = [(row, self._samples[row]) for row in batch if row in self._samples]
            losses = model(self.inputs(mine, epoch))
            each = len(losses) // max(1, len(mine))
            # Gradients are averaged over ranks: what each holds of the step counts by its share.
            share = losses.sum() * (group.size / (len(batch) * max(1, each)))
            optimiser.zero_grad(set_to_none=True)
            share.backward()
            optimiser.step()
            total += float(share.detach()) * len(batch) / group.size
        mean = float(group.all_reduce(total)) / len(rows)
        if not math.isfinite(mean):
            told = f"the loss of epoch {epoch + 1} is {mean}"
            raise ValueError(f"{told}; lower the method's lr, which is {self.settings.lr}")
        return mean

    def batches(self, rows: Tensor, epoch: int) -> Iterator[list[int]]:
        """The steps of an epoch: row numbers, shuffled; the last may be smaller."""
        order = torch.randperm(len(rows), generator=self.generator("order", epoch))
        for part in torch.split(rows[order], self.settings.batch):
            yield part.tolist()

    def generator(self, *key: object) -> torch.Generator:
        """Randomness that follows from the seed and a key alone."""
        text = repr((self.settings.seed, *key)).encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)
        return torch.Generator().manual_seed(seed)


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
