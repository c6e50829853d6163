"""CFLOW-AD (Gudovskiy et al., WACV 2022): likelihood of a feature vector, given its position."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ops.augment.rotation import rotate_images
from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.trained_on_features import (
    FeatureSettings,
    TrainedOnFeatures,
    whitening_bytes,
)
from ops.distributed import Group
from ops.features.backbone import LayerShape
from ops.flows.conditional_flow import Mixing, PositionFlows, Positions
from ops.flows.feature_map_flow import negative_log_density
from ops.flows.vector_flow import fixed_value_count

#: Activations that a coupling block keeps per channel, besides those of its subnet.
_ACTIVATIONS = 5


@dataclass(frozen=True)
class CFlowSettings(FeatureSettings):
    """Settings of CFLOW-AD; defaults are those of the authors' code."""

    epochs: int = 200
    """Epochs of training; the paper has 25 times 8."""
    batch: int = 32
    """Images per batch, over all workers together; a batch makes several training steps."""
    fibers: int = 256
    """Feature vectors of the largest layer per training step, over all images of a batch. More if
    the smallest layer has too few positions for that many steps."""
    warmup: int = 16
    """Epochs of warm-up, over which the learning rate rises linearly from a tenth; at most a tenth
    of all epochs."""
    weight_decay: float = 0.0
    """Weight decay (L2 penalty) of Adam."""
    blocks: int = 8
    """Coupling blocks of each layer's flow."""
    clamp: float = 1.9
    """Clamp of the log-scales in coupling blocks."""
    condition: int = 128
    """Dimension of the positional encoding that conditions the flows; a multiple of 4."""
    mixing: Mixing = "soft"
    """How coupling blocks mix channels. soft: random rotation; hard: random permutation."""
    angle: float = 5.0
    """Training images are rotated by a random angle of at most this many degrees."""
    sigma: float = 0.0
    """Standard deviation, in input pixels, of the Gaussian that smooths anomaly maps; 0 = no
    smoothing, as in the paper."""


class CFlow(TrainedOnFeatures):
    """Flows on the feature vectors of single positions, conditioned on a positional encoding.

    A batch makes many steps, each on some positions of each of its images. All layers take a step
    together, so that its gradient is the same on any number of workers. (Our choice: in the
    authors' code each layer takes steps of its own, and incomplete ones are dropped.)

    The map is -log of the mean over layers of exp(log p / C - peak); it ranks positions as the
    paper's does. It is negative where a vector is more likely than all vectors of the training
    images. A layer's peak is the largest log p / C of training images; the paper takes that of the
    test set. Maps are upsampled without aligned corners; the authors' code aligns them, which
    moves defects by up to half a position.
    The image score is the map's maximum.
    """

    name = "cflow"
    Settings = CFlowSettings
    no_tiles = (
        "cflow conditions its flows on positions of aligned images, and a tile's positions lie "
        "elsewhere on the part in every tile"
    )
    by_position = True
    score_is_peak = True
    settings: CFlowSettings
    network: PositionFlows | None

    @classmethod
    def estimate(cls, settings: CFlowSettings, fit_size: FitSize) -> ResourceEstimate:
        """Memory of the flows, most of which is weights."""
        s = settings
        trained = 4 * PositionFlows.parameter_count(fit_size.layers, s.blocks, s.condition)
        fixed = 4 * fixed_value_count(fit_size.layers, s.blocks)
        fixed += whitening_bytes(s, fit_size.layers)
        batch = min(s.batch, fit_size.images_per_worker)
        step = s.blocks * sum(
            _activations(shape, s)
            * batch
            * -(-shape[1] * shape[2] // _steps(fit_size.layers, s, batch))
            for shape in fit_size.layers
        )
        maps = sum(math.prod(shape) for shape in fit_size.layers)
        largest = max(_activations(shape, s) * shape[1] * shape[2] for shape in fit_size.layers)
        return ResourceEstimate(
            vectors=fit_size.images * sum(h * w for _, h, w in fit_size.layers),
            kept=0,
            fit_bytes=6 * trained
            + 2 * fixed
            + fit_size.pixel_bytes
            + 4 * int(step + 2 * batch * maps + largest),
            fit_host_bytes=fit_size.pixel_bytes,
            score_bytes=2 * (trained + fixed) + 4 * int(maps + largest),
            model_bytes=trained + fixed,
            remedy="lower --cflow.blocks or --cflow.batch, or name layers with fewer channels",
        )

    @classmethod
    def timing_probe(cls, settings: CFlowSettings, fit_size: FitSize) -> TimingProbe:
        """A training step of one worker on features; both kinds of mixing take equally long."""
        network, device = _network(settings, fit_size.layers, "hard"), fit_size.device
        network.to(device)
        batch = min(settings.batch, fit_size.images)
        steps, mine = _steps(fit_size.layers, settings, batch), -(-batch // fit_size.workers)
        part = [
            Positions(
                torch.zeros(mine, k, c, device=device),
                torch.zeros(mine, k, dtype=torch.int64, device=device),
            )
            for c, k in ((c, -(-h * w // steps)) for c, h, w in fit_size.layers)
        ]
        optimiser = torch.optim.Adam(p for p in network.parameters() if p.requires_grad)

        def step() -> None:
            network(part).sum().backward()
            optimiser.step()

        return TimingProbe(step, settings.epochs * steps * fit_size.images / batch)

    def network_for(self, shapes: list[LayerShape]) -> PositionFlows:
        """One flow for each layer."""
        return _network(self.settings, shapes, self.settings.mixing)

    def empty_network(self) -> PositionFlows:
        """A network with permutations: rotations take long to draw, and are about to be loaded."""
        return _network(self.settings, self._shapes, "hard")

    def learning_rate(self, epoch: int) -> float:
        """Linear warm-up from a tenth; then cosine decay to a thousandth."""
        s = self.settings
        warmup = min(s.warmup, s.epochs // 10)

        def cosine(epoch: int) -> float:
            return s.lr * (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * epoch / s.epochs)) / 2)

        if epoch >= warmup:
            return cosine(epoch)
        return s.lr / 10 + (cosine(warmup) - s.lr / 10) * epoch / warmup

    def rotated_features(self, samples: list[tuple[int, Tensor]], epoch: int) -> list[Tensor]:
        """Feature maps of randomly rotated images."""
        images = self.images([sample for _, sample in samples])
        angles = [self._angle(row, epoch) for row, _ in samples]
        return self.features(rotate_images(images, torch.tensor(angles)) if angles else images)

    def steps(
        self, samples: list[tuple[int, Tensor]], epoch: int, of: int
    ) -> Iterator[list[Positions]]:
        """Every position of every image once, in a random order for each image."""
        vectors = [_vectors(layer) for layer in self.rotated_features(samples, epoch)]
        count = _steps(self._shapes, self.settings, of)
        orders = [
            self._order(number, v.shape[1], samples, epoch).to(v.device).tensor_split(count, dim=1)
            for number, v in enumerate(vectors)
        ]
        for places in zip(*orders, strict=True):
            yield [
                Positions(v.gather(1, at[..., None].expand(-1, -1, v.shape[2])), at)
                for v, at in zip(vectors, places, strict=True)
            ]

    def _order(
        self, layer: int, positions: int, samples: list[tuple[int, Tensor]], epoch: int
    ) -> Tensor:
        """The shuffled positions of each sample (n, positions)."""
        orders = [
            torch.randperm(positions, generator=self.generator("places", epoch, row, layer))
            for row, _ in samples
        ]
        return torch.stack(orders) if orders else torch.empty(0, positions, dtype=torch.int64)

    def _angle(self, row: int, epoch: int) -> float:
        """The random rotation of an image in an epoch, in radians."""
        draw = torch.rand((), generator=self.generator("angle", epoch, row))
        return math.radians(self.settings.angle) * (2 * float(draw) - 1)

    def finish(self, group: Group) -> None:
        """Compute the peak of each layer, then the map ceiling."""
        assert self.network is not None
        peaks = torch.full((len(self._shapes),), -math.inf, dtype=torch.float64)
        with torch.no_grad():
            for sample in self._samples.values():
                logs = self._likelihoods(self.features(self.images([sample])))
                peaks = peaks.maximum(torch.stack([layer.max() for layer in logs]).cpu())
        self.network.peaks.copy_(group.all_reduce(peaks, "max"))
        super().finish(group)

    @torch.inference_mode()
    def score_block(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maxima (n,) of the anomaly maps, and the maps (n, H, W)."""
        assert self.network is not None
        logs = self._likelihoods(self.features(images))
        relative = [log - peak for log, peak in zip(logs, self.network.peaks, strict=True)]
        maps = negative_log_density([log.exp() for log in relative], images.shape[2:]).float()
        return maps.amax(dim=(1, 2)), maps

    def _likelihoods(self, maps: list[Tensor]) -> list[Tensor]:
        """Feature maps (n, C, h, w) -> log p / C of each position (n, h, w)."""
        assert self.network is not None
        likelihoods = []
        for number, layer in enumerate(maps):
            count, _, height, width = layer.shape
            places = torch.arange(height * width, device=layer.device).expand(count, -1)
            logs = self.network.likelihoods(number, Positions(_vectors(layer), places))
            likelihoods.append(logs.view(count, height, width))
        return likelihoods


def _network(settings: CFlowSettings, shapes: list[LayerShape], mixing: Mixing) -> PositionFlows:
    s = settings
    return PositionFlows(shapes, s.blocks, s.clamp, s.condition, mixing, s.seed)


def _steps(shapes: list[LayerShape], settings: CFlowSettings, images: int) -> int:
    """Steps of a batch, with `fibers` vectors of the largest layer in each.

    At most one step per position of the smallest layer.
    """
    sizes = [height * width for _, height, width in shapes]
    return max(1, min(max(sizes) * images // settings.fibers, *sizes))


def _vectors(maps: Tensor) -> Tensor:
    """(n, C, h, w) -> (n, h * w, C)."""
    return maps.flatten(2).transpose(1, 2)


def _activations(shape: LayerShape, settings: CFlowSettings) -> int:
    """Activations that a coupling block keeps for each position."""
    channels = shape[0]
    inputs = channels - channels // 2 + settings.condition
    return _ACTIVATIONS * channels + 5 * inputs
