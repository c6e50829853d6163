"""PaDiM (Defard et al., ICPR Workshops 2020): a Gaussian of patch features at each position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.detectors.detector import (
    Checkpoint,
    Detector,
    FitCounts,
    Fitted,
    MapSettings,
    Scores,
    finite_rows,
)
from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.distributed import Group
from ops.errors import UserError
from ops.features.backbone import Backbone, LayerShape
from ops.features.moments import Moments, packed_size, squared_lengths
from ops.progress import ProgressCallback
from ops.results import anomaly_map

#: Images to a matrix product. They are its columns, so each goes through the same operations,
#: in the same order, in another lane: bits that do not depend on the batch. It costs no more time
#: than one image alone, which reads as much memory.
_BLOCK = 16
#: Positions that a rank factors between two exchanges.
_STEP = 32
#: Images of a round for each worker that a plan reckons with.
_ROUND = 16
#: Rounds that are timed before a fit, at most.
_ROUNDS = 64
#: Images that say how far a good one may be from a fit without it, for the scale of maps.
_SAMPLE = 32


@dataclass(frozen=True)
class PaDiMSettings(MapSettings):
    """Settings of PaDiM."""

    dim: int = 100
    """Channels that are kept, drawn at random from all layers; 0 = all of them."""
    ridge: float = 0.01
    """What is added to the diagonal of each covariance; with few images it carries the inverse."""
    seed: int = 0
    """Seed of the draw."""


class PaDiM(Detector):
    """Mahalanobis distances to the Gaussian of each position; images must be aligned.

    While fitting, each rank owns a range of positions and accumulates their moments over the
    images of all ranks: no rank holds all moments, and none more for more images.
    """

    name = "padim"
    Settings = PaDiMSettings
    settings: PaDiMSettings
    exchanges = True

    def __init__(self, settings: PaDiMSettings, backbone: Backbone) -> None:
        """Unfitted."""
        super().__init__(settings, backbone)
        self.channels = torch.empty(0, dtype=torch.int64)
        self.mean = torch.empty(0, 0, 0)
        self.factor = torch.empty(0, 0)
        self.ceiling = 0.0
        self._waiting: list[Tensor] = []
        self._rows = [torch.empty(0, dtype=torch.int64)]
        self._sample, self._sampled = torch.empty(0), self._rows[0]
        self._moments: Moments | None = None
        self._images = self._dropped = 0

    @classmethod
    def estimate(cls, settings: PaDiMSettings, load: FitSize) -> ResourceEstimate:
        """The moments of a worker's positions, in float64, and the embeddings of a round."""
        positions, width = _grid_size(load.layers), _width(settings, load.channels)
        own = -(-positions // load.workers)
        numbers = width + packed_size(width)
        model = positions * numbers * 4 + 8 * width + 8
        # Gathered, put together, sent and received in float32, then centred in float64.
        round_of_images = (_ROUND + 1) * positions * width * (4 * 4 + 8)
        sample = 2 * _SAMPLE * own * width * 4
        factoring = 4 * min(_STEP, own) * width * width * 8
        return ResourceEstimate(
            vectors=load.images * positions,
            kept=positions,
            fit_bytes=own * numbers * 8 + round_of_images + sample + factoring + 2 * model,
            score_bytes=model + 4 * _BLOCK * positions * width * 4,
            model_bytes=model,
            remedy="lower --padim.dim or --input.size",
        )

    @classmethod
    def timing_probe(cls, settings: PaDiMSettings, load: FitSize) -> TimingProbe:
        """A few of the positions: rounds of images are taken in, then factored."""
        positions, few = _grid_size(load.layers), 8
        moments = Moments(few, _width(settings, load.channels))
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(_ROUND, *moments.mean.shape, generator=generator)
        rounds = -(-load.images // _ROUND)

        def work() -> object:
            for _ in range(min(rounds, _ROUNDS)):
                moments.add(vectors)
            return moments.whitening(slice(few), 1.0)

        return TimingProbe(work, max(1, rounds / _ROUNDS) * positions / few / load.workers)

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Chosen channels of all layers at every position of the finest (B, h, w, d).

        Coarser layers are repeated to that grid (section III-A).
        """
        layers = self.backbone(images)
        if not len(self.channels):
            self.channels = self._drawn(sum(layer.shape[1] for layer in layers))
        grid = max(layer.shape[-2:] for layer in layers)
        parts, first = [], 0
        for layer in layers:
            end = first + layer.shape[1]
            inside = self.channels[(self.channels >= first) & (self.channels < end)] - first
            parts.append(F.interpolate(layer[:, inside.to(layer.device)], grid, mode="nearest"))
            first = end
        return torch.cat(parts, dim=1).permute(0, 2, 3, 1).contiguous()

    def _drawn(self, total: int) -> Tensor:
        """Numbers of the channels that are kept, ascending: the order changes no distance."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        drawn = torch.randperm(total, generator=generator)
        return drawn[: _width(self.settings, total)].sort().values

    def add_images(self, images: Tensor, rows: Tensor) -> None:
        """Keep the images' embeddings until they are shared; one that is not finite counts."""
        vectors = self.embed(images).cpu()
        keep = finite_rows(vectors.flatten(1))
        self._images += len(vectors)
        self._dropped += int((~keep).sum())
        self._waiting.append(vectors[keep])
        self._rows.append(rows[keep])

    def exchange(self, group: Group) -> None:
        """Every embedding goes to the owners of its positions, who add it to their moments."""
        if self._moments is None and not self._begin(group):
            return
        assert self._moments
        height, width, dim = self.mean.shape
        empty = torch.empty(0, height, width, dim)
        vectors = torch.cat([*self._waiting, empty]).flatten(1, 2)
        rows = torch.cat(group.all_gather(torch.cat(self._rows)))
        self._waiting, self._rows = [], self._rows[:1]
        ranges = _ranges(height * width, group.size)
        received = group.all_to_all([vectors[:, first:end] for first, end in ranges])
        own = torch.cat(received)
        self._moments.add(own)
        self._draw_sample(own, rows)

    def _draw_sample(self, vectors: Tensor, rows: Tensor) -> None:
        """Keep the images whose numbers hash lowest: the same ones for any order and shards."""
        old = len(self._sampled)
        rows = torch.cat([self._sampled, rows])
        chosen = (rows * 2654435761 % 2**32).argsort()[:_SAMPLE].sort().values
        new = vectors[chosen[chosen >= old] - old]
        self._sample = torch.cat([self._sample[chosen[chosen < old]], new]) if old else new
        self._sampled = rows[chosen]

    def _begin(self, group: Group) -> bool:
        """Agree on the grid and the channels; False if no rank has met an image yet."""
        own = [*self._waiting[0].shape[1:3], 1] if self._waiting else [0, 0, 0]
        height, width, met = group.all_reduce(torch.tensor(own), "max").tolist()
        if not met:
            return False
        drawn = group.all_gather(self.channels)
        self.channels = max(drawn, key=len)
        self.mean = torch.zeros(height, width, len(self.channels))
        first, end = _ranges(height * width, group.size)[group.rank]
        self._moments = Moments(end - first, len(self.channels))
        return True

    def fit(self, group: Group, watch: ProgressCallback, checkpoint: Checkpoint) -> Fitted:  # noqa: ARG002 - it is short
        """Each rank factors the covariances of its positions; all get all."""
        self.exchange(group)
        counts = torch.tensor([self._images, self._dropped])
        images, dropped = group.all_reduce(counts).tolist()
        if images == dropped:
            raise UserError("there is no good image with finite features to fit on")
        assert self._moments
        height, width, dim = self.mean.shape
        ranges = _ranges(height * width, group.size)
        longest = max(end - first for first, end in ranges)
        factor = torch.empty(height * width, packed_size(dim))
        broken, left_out = torch.tensor([0]), 0.0
        for step in range(0, longest, _STEP):
            places = slice(step, step + _STEP)
            whitening, definite = self._moments.whitening(places, self.settings.ridge)
            broken |= not definite
            left_out = max(left_out, self._left_out(places, whitening))
            for (first, _), part in zip(ranges, group.all_gather(whitening.float()), strict=True):
                factor[first + step : first + step + len(part)] = part
            watch("factor", min(step + _STEP, longest), longest)
        if int(group.all_reduce(broken, "max")):
            raise UserError(
                f"a covariance is not positive definite with --padim.ridge "
                f"{self.settings.ridge:g}; raise it, or fit on more images than --padim.dim"
            )
        mean = torch.cat(group.all_gather(self._moments.mean.float()))
        farthest = group.all_reduce(torch.tensor([left_out], dtype=torch.float64), "max")
        self.mean = mean.view(height, width, dim).to(self.backbone.device)
        self.factor = factor.to(self.backbone.device)
        self.ceiling = max(float(farthest), dim**0.5)
        self._moments = None
        self._sample, self._sampled = self._sample[:0], self._sampled[:0]
        counts = FitCounts(images, dropped_images=dropped)
        return Fitted(counts, {"positions": height * width, "channels": dim})

    def _left_out(self, places: slice, whitening: Tensor) -> float:
        """The largest distance of the sample at some places, each image from a fit without it.

        Leaving one out changes the covariance by a matrix of rank one (Sherman and Morrison 1950),
        and little besides: (n - 2) / (n - 1) of the ridge, for which the whole one stands.
        """
        assert self._moments
        n, mean = self._moments.count, self._moments.mean[places]
        if n < 3 or not len(mean):
            return 0.0
        centred = self._sample[:, places].double() - mean
        inside = squared_lengths(whitening, centred.permute(1, 2, 0))
        rest = (1 - inside * n / (n - 1) ** 2).clamp(min=1e-9)
        squares = inside / rest * (n / (n - 1)) ** 2 * (n - 2) / (n - 1)
        return float(squares.amax().sqrt())

    @torch.inference_mode()
    def score(self, images: Tensor) -> Scores:
        """Equation 2 at each position; the image's score is the maximum of its drawn map."""
        if not len(self.factor):
            raise ValueError("this detector is not fitted")
        vectors = self.embed(images)
        if vectors.shape[1:] != self.mean.shape:
            raise UserError(
                f"features are {tuple(vectors.shape[1:])}, but the detector was fitted on "
                f"{tuple(self.mean.shape)}; score images of the size that it was fitted on"
            )
        distances = torch.cat([self._distances(part) for part in torch.split(vectors, _BLOCK)])
        size, sigma = images.shape[-1], self.settings.sigma
        drawn = [anomaly_map.upsample(grid.numpy(), size, sigma).max() for grid in distances.cpu()]
        return Scores(torch.tensor(drawn, device=images.device), distances)

    def _distances(self, vectors: Tensor) -> Tensor:
        """|L^-1 (x - mean)| of at most `_BLOCK` images (B, h, w, d): (B, h, w)."""
        count, height, width, dim = vectors.shape
        columns = vectors.new_zeros(height * width, dim, _BLOCK)
        columns[:, :, :count] = (vectors - self.mean).flatten(1, 2).permute(1, 2, 0)
        squares = squared_lengths(self.factor, columns)
        return squares.sqrt_().T[:count].reshape(count, height, width)

    def map_ceiling(self) -> float:
        """The largest distance of a sample of the images, each left out of the fit in turn.

        Features have heavier tails than a Gaussian: its own distances say too little.
        """
        return self.ceiling

    def state(self) -> dict[str, Tensor]:
        """Channels (d,); means (h, w, d); factors L^-1 (h * w, packed); the map ceiling."""
        return {
            "channels": self.channels,
            "mean": self.mean,
            "factor": self.factor,
            "ceiling": torch.tensor(self.ceiling, dtype=torch.float64),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take channels, means and factors over."""
        self.channels = state["channels"]
        self.mean = state["mean"].to(self.backbone.device)
        self.factor = state["factor"].to(self.backbone.device)
        self.ceiling = float(state["ceiling"])


def _width(settings: PaDiMSettings, total: int) -> int:
    """How many of `total` channels are kept."""
    return min(settings.dim, total) or total


def _grid_size(shapes: list[LayerShape]) -> int:
    return max(height * width for _, height, width in shapes)


def _ranges(positions: int, ranks: int) -> list[tuple[int, int]]:
    """First position, and end, of what each rank owns."""
    return [(positions * r // ranks, positions * (r + 1) // ranks) for r in range(ranks)]
