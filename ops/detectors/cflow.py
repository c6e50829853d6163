"""CFLOW-AD (Gudovskiy et al., WACV 2022): likelihood of each position, given where it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ops.augment.rotation import rotated
from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.trained import TrainingSettings
from ops.detectors.trained_on_features import TrainedOnFeatures
from ops.distributed import Group
from ops.features.backbone import LayerShape
from ops.flows.conditional_flow import Mixing, PositionFlows, Positions
from ops.flows.feature_map_flow import negative_log_density
from ops.flows.vector_flow import fixed_value_count

#: Numbers that a coupling keeps of each that passes it, beside those of its subnet.
_KEPT = 5


@dataclass(frozen=True)
class CFlowSettings(TrainingSettings):
    """Settings of CFLOW-AD; its defaults are its code's."""

    epochs: int = 200
    """How often training goes over all images; in the paper 25 times 8."""
    batch: int = 32
    """Images that share steps, over all workers together."""
    fibers: int = 256
    """Positions of the largest layer in a step, over all images of a batch; more where the
    smallest would run out of positions."""
    warmup: int = 16
    """Epochs until the learning rate, which begins with a tenth, is whole; a tenth of all at
    most."""
    weight_decay: float = 0.0
    """Adam's L2 penalty."""
    blocks: int = 8
    """Couplings of each layer's flow."""
    clamp: float = 1.9
    """Bound of a coupling's log-scale."""
    condition: int = 128
    """Numbers that say where a position is; a multiple of 4."""
    mixing: Mixing = "soft"
    """How couplings mix channels: soft by a rotation, hard by a permutation."""
    angle: float = 5.0
    """Images are turned by up to so many degrees in training."""
    sigma: float = 0.0
    """Standard deviation in input pixels of a Gaussian over maps; 0 = none, as in the paper."""


class CFlow(TrainedOnFeatures):
    """Flows on the channels of single positions, conditioned on a code of the place.

    A batch makes many steps, each on some positions of each of its images. All layers step
    together (our choice: in the paper's code each takes steps of its own, and incomplete ones are
    dropped), so that a step's gradient is the same on any number of workers.

    The map is -log of the mean over layers of exp(log p / C - peak), in the order of the paper's;
    it is negative where nothing fitted on was as likely. Peaks are the largest of the good images
    fitted on, where the paper takes those of the test set. Maps are enlarged about the middles of
    their positions, where its code pulls the outermost to the border, which moves defects by up to
    half a position.
    The image score is the map's maximum.
    """

    name = "cflow"
    Settings = CFlowSettings
    settings: CFlowSettings
    network: PositionFlows | None

    @classmethod
    def estimate(cls, settings: CFlowSettings, load: FitSize) -> ResourceEstimate:
        """What the flows take; weights are most of it."""
        s = settings
        trained = 4 * PositionFlows.parameter_count(load.layers, s.blocks, s.condition)
        fixed = 4 * fixed_value_count(load.layers, s.blocks)
        batch = min(s.batch, load.images_per_worker)
        step = s.blocks * sum(
            _width(shape, s) * batch * -(-shape[1] * shape[2] // _steps(load.layers, s, batch))
            for shape in load.layers
        )
        maps = sum(math.prod(shape) for shape in load.layers)
        whole = max(_width(shape, s) * shape[1] * shape[2] for shape in load.layers)
        return ResourceEstimate(
            vectors=load.images * sum(h * w for _, h, w in load.layers),
            kept=0,
            fit_bytes=6 * trained
            + 2 * fixed
            + load.images_per_worker * 2 * 3 * load.size**2
            + 4 * int(step + 2 * batch * maps + whole),
            score_bytes=2 * (trained + fixed) + 4 * int(maps + whole),
            model_bytes=trained + fixed,
            remedy="lower --cflow.blocks or --cflow.batch, or name layers with fewer channels",
        )

    @classmethod
    def timing_probe(cls, settings: CFlowSettings, load: FitSize) -> TimingProbe:
        """A step of a worker, behind the backbone; how channels are mixed takes equally long."""
        network = _network(settings, load.layers, "hard")
        batch = min(settings.batch, load.images)
        steps, mine = _steps(load.layers, settings, batch), -(-batch // load.workers)
        part = [
            Positions(torch.zeros(mine, k, c), torch.zeros(mine, k, dtype=torch.int64))
            for c, k in ((c, -(-h * w // steps)) for c, h, w in load.layers)
        ]
        optimiser = torch.optim.Adam(p for p in network.parameters() if p.requires_grad)

        def step() -> None:
            network(part).sum().backward()
            optimiser.step()

        return TimingProbe(step, settings.epochs * steps * load.images / batch)

    def network_for(self, shapes: list[LayerShape]) -> PositionFlows:
        """A flow for each layer."""
        return _network(self.settings, shapes, self.settings.mixing)

    def empty_network(self) -> PositionFlows:
        """With permutations, as rotations take long to draw, and are about to be loaded."""
        return _network(self.settings, self._shapes, "hard")

    def learning_rate(self, epoch: int) -> float:
        """From a tenth, linearly; then along a cosine down to a thousandth."""
        s = self.settings
        warmup = min(s.warmup, s.epochs // 10)

        def falling(at: int) -> float:
            return s.lr * (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * at / s.epochs)) / 2)

        if epoch >= warmup:
            return falling(epoch)
        return s.lr / 10 + (falling(warmup) - s.lr / 10) * epoch / warmup

    def turned(self, samples: list[tuple[int, Tensor]], epoch: int) -> list[Tensor]:
        """Feature maps of images that are turned a little."""
        images = self.images([sample for _, sample in samples])
        angles = [self._angle(row, epoch) for row, _ in samples]
        return self.features(rotated(images, torch.tensor(angles)) if angles else images)

    def steps(
        self, samples: list[tuple[int, Tensor]], epoch: int, of: int
    ) -> Iterator[list[Positions]]:
        """Every position of every image once, in an order of its own."""
        vectors = [_vectors(layer) for layer in self.turned(samples, epoch)]
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
        """The positions of each sample, shuffled (n, positions)."""
        orders = [
            torch.randperm(positions, generator=self.generator("places", epoch, row, layer))
            for row, _ in samples
        ]
        return torch.stack(orders) if orders else torch.empty(0, positions, dtype=torch.int64)

    def _angle(self, row: int, epoch: int) -> float:
        """In radians."""
        draw = torch.rand((), generator=self.generator("angle", epoch, row))
        return math.radians(self.settings.angle) * (2 * float(draw) - 1)

    def finish(self, group: Group) -> None:
        """The layers' peaks, then how large maps get."""
        assert self.network is not None
        peaks = torch.full((len(self._shapes),), -math.inf, dtype=torch.float64)
        with torch.no_grad():
            for sample in self._samples.values():
                logs = self._likelihoods(self.features(self.images([sample])))
                peaks = peaks.maximum(torch.stack([layer.max() for layer in logs]).cpu())
        self.network.peaks.copy_(group.all_reduce(peaks, "max"))
        super().finish(group)

    @torch.inference_mode()
    def score_one(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """A map as large as the image, and its maximum."""
        assert self.network is not None
        logs = self._likelihoods(self.backbone(image[None]))
        relative = [log - peak for log, peak in zip(logs, self.network.peaks, strict=True)]
        drawn = negative_log_density([log.exp() for log in relative], image.shape[1:]).float()
        return drawn.max(), drawn

    def _likelihoods(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (1, C, h, w) -> log p / C of each position (h, w)."""
        assert self.network is not None
        found = []
        for number, layer in enumerate(maps):
            height, width = layer.shape[2:]
            places = torch.arange(height * width, device=layer.device)[None]
            logs = self.network.likelihoods(number, Positions(_vectors(layer), places))
            found.append(logs.view(height, width))
        return found


def _network(settings: CFlowSettings, shapes: list[LayerShape], mixing: Mixing) -> PositionFlows:
    s = settings
    return PositionFlows(shapes, s.blocks, s.clamp, s.condition, mixing, s.seed)


def _steps(shapes: list[LayerShape], settings: CFlowSettings, images: int) -> int:
    """Steps of a batch: so many that `fibers` of the largest layer make one, if all have some."""
    sizes = [height * width for _, height, width in shapes]
    return max(1, min(max(sizes) * images // settings.fibers, *sizes))


def _vectors(maps: Tensor) -> Tensor:
    """(n, C, h, w) -> (n, h * w, C)."""
    return maps.flatten(2).transpose(1, 2)


def _width(shape: LayerShape, settings: CFlowSettings) -> int:
    """Numbers that a coupling keeps of each position that passes it."""
    channels = shape[0]
    inputs = channels - channels // 2 + settings.condition
    return _KEPT * channels + 5 * inputs
