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
    extended_maps,
    finite_rows,
    nearest_shown,
)
from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.position_gaussians import SAMPLE, STEP, GaussianFit
from ops.distributed import Group
from ops.errors import UserError
from ops.features.backbone import Backbone, LayerShape
from ops.features.moments import Moments, packed_size, squared_lengths
from ops.progress import ProgressCallback
from ops.results import anomaly_map

#: Images of a matrix product. As its columns, all go through the same operations in the same
#: order, so that rounding does not depend on the batch. One image alone would take as long, because
#: reading the factors takes most of the time.
_BLOCK = 16
#: Images of all workers between two exchanges for each worker, as assumed by an estimate.
_ROUND = 16
#: Largest number of exchanges that are timed before a fit.
_ROUNDS = 64


@dataclass(frozen=True)
class PaDiMSettings(MapSettings):
    """Settings of PaDiM."""

    dim: int = 100
    """Number of channels, chosen at random from those of all layers; 0 = all channels."""
    ridge: float = 0.01
    """Added to the diagonal of each covariance, which makes it invertible with few images."""
    seed: int = 0
    """Seed of the random choice of channels."""


class PaDiM(Detector):
    """Mahalanobis distances to the Gaussian of each position; images must be aligned."""

    name = "padim"
    Settings = PaDiMSettings
    settings: PaDiMSettings
    exchanges = True
    no_tiles = (
        "padim fits a Gaussian at each position of aligned images, and a tile's positions lie "
        "elsewhere on the part in every tile"
    )
    by_position = True

    def __init__(self, settings: PaDiMSettings, backbone: Backbone) -> None:
        """A detector that is not fitted."""
        super().__init__(settings, backbone)
        self.channels = torch.empty(0, dtype=torch.int64)
        self._chosen: list[Tensor] = []
        self.mean = torch.empty(0, 0, 0)
        self.factor = torch.empty(0, 0)
        self.ceiling = 0.0
        self._gaussians = GaussianFit(backbone.device)
        self._images = self._dropped = 0

    @classmethod
    def estimate(cls, settings: PaDiMSettings, fit_size: FitSize) -> ResourceEstimate:
        """The moments of a worker's positions, in float64, and the embeddings of an exchange."""
        positions, width = _grid_size(fit_size.layers), _width(settings, fit_size.channels)
        own = -(-positions // fit_size.workers)
        numbers = width + packed_size(width)
        model = positions * numbers * 4 + 8 * width + 8
        # Embeddings: waiting, joined, sent and received in float32, then centred in float64.
        round_of_images = (_ROUND + 1) * positions * width * (4 * 4 + 8)
        sample = 2 * SAMPLE * own * width * 4
        factoring = 4 * min(STEP, own) * width * width * 8
        return ResourceEstimate(
            vectors=fit_size.images * positions,
            kept=positions,
            fit_bytes=own * numbers * 8 + round_of_images + sample + factoring + 2 * model,
            fit_host_bytes=model,
            score_bytes=model + 4 * _BLOCK * positions * width * 4,
            model_bytes=model,
            remedy="lower --padim.dim or --input.size",
        )

    @classmethod
    def timing_probe(cls, settings: PaDiMSettings, fit_size: FitSize) -> TimingProbe:
        """Add images at a few of the positions, then factor their covariances."""
        positions, few = _grid_size(fit_size.layers), 8
        moments = Moments(few, _width(settings, fit_size.channels), fit_size.device)
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(_ROUND, *moments.mean.shape, generator=generator)
        vectors = vectors.to(fit_size.device)
        rounds = -(-fit_size.images // _ROUND)

        def work() -> object:
            for _ in range(min(rounds, _ROUNDS)):
                moments.add(vectors)
            return moments.whitening(slice(few), 1.0)

        return TimingProbe(work, max(1, rounds / _ROUNDS) * positions / few / fit_size.workers)

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """The chosen channels of all layers at the positions of the finest layer (B, h, w, d).

        Coarser layers are upsampled to that grid by nearest neighbour (section III-A).
        """
        layers = self.backbone(images)
        if not len(self.channels):
            self.channels = self._choose_channels(sum(layer.shape[1] for layer in layers))
        grid = max(layer.shape[-2:] for layer in layers)
        if not self._chosen:
            self._chosen = self._chosen_of([layer.shape[1] for layer in layers])
        parts = [
            F.interpolate(layer.index_select(1, chosen), grid, mode="nearest")
            for layer, chosen in zip(layers, self._chosen, strict=True)
        ]
        return torch.cat(parts, dim=1).permute(0, 2, 3, 1).contiguous()

    def _chosen_of(self, widths: list[int]) -> list[Tensor]:
        """The chosen channels of each layer, counted from its first, on the backbone's device."""
        chosen, first = [], 0
        for width in widths:
            inside = (self.channels >= first) & (self.channels < first + width)
            chosen.append((self.channels[inside] - first).to(self.backbone.device))
            first += width
        return chosen

    def _choose_channels(self, total: int) -> Tensor:
        """Numbers of the chosen channels, ascending."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        shuffled = torch.randperm(total, generator=generator)
        return shuffled[: _width(self.settings, total)].sort().values

    def add_images(self, images: Tensor, rows: Tensor) -> None:
        """Keep the images' embeddings until the next exchange, except those that are not finite."""
        self._add(self.embed(images), rows)

    def add_inside(self, images: Tensor, rows: Tensor, inside: Tensor) -> None:
        """As `add_images`; positions that do not count take the features of the nearest that do.

        Their Gaussians play no part in scores, and so neither in the map ceiling.
        """
        vectors = self.embed(images)
        count, height, width, _ = vectors.shape
        places = nearest_shown(inside, (height, width)).to(vectors.device)
        chosen = vectors.flatten(1, 2)[torch.arange(count, device=places.device)[:, None], places]
        self._add(chosen.view_as(vectors), rows)

    def _add(self, vectors: Tensor, rows: Tensor) -> None:
        finite = finite_rows(vectors.flatten(1))
        keep = finite.cpu()
        self._images += len(vectors)
        self._dropped += int((~keep).sum())
        self._gaussians.add(vectors[finite], rows[keep])

    def exchange(self, group: Group) -> None:
        """Send every embedding to the owners of its positions, who add it to their moments."""
        self._gaussians.exchange(group)

    def fit(self, group: Group, progress: ProgressCallback, checkpoint: Checkpoint) -> Fitted:  # noqa: ARG002 - it is short
        """Factor the covariances of all positions."""
        self.exchange(group)
        counts = torch.tensor([self._images, self._dropped])
        images, dropped = group.all_reduce(counts).tolist()
        if images == dropped:
            raise UserError("there is no good image with finite features to fit on")
        # A worker without an image has not chosen channels yet.
        self.channels = max(group.all_gather(self.channels), key=len)
        gaussians = self._gaussians.finish(self.settings.ridge, group, progress)
        self._gaussians = GaussianFit(self.backbone.device)
        self.mean = gaussians.mean.to(self.backbone.device)
        self.factor = gaussians.factor.to(self.backbone.device)
        height, width, dim = self.mean.shape
        self.ceiling = max(gaussians.farthest, dim**0.5)
        return Fitted(
            FitCounts(images, dropped_images=dropped),
            {"positions": height * width, "channels": dim},
        )

    @torch.inference_mode()
    def score(self, images: Tensor) -> Scores:
        """Equation 2 at each position; an image's score is the maximum of its upsampled map."""
        distances, sigma = self._maps(images), self.settings.sigma
        size = images.shape[3], images.shape[2]
        scores = [anomaly_map.upsample(grid.numpy(), size, sigma).max() for grid in distances.cpu()]
        return Scores(torch.tensor(scores), distances)

    @torch.inference_mode()
    def score_inside(self, images: Tensor, inside: Tensor) -> Scores:
        """As `score`, with the maximum over the pixels that count.

        Positions that do not count take the distances of the nearest that do before the map is
        smoothed.
        """
        distances, sigma = self._maps(images), self.settings.sigma
        size = images.shape[3], images.shape[2]
        grids = extended_maps(list(distances.cpu().numpy()), inside, [True] * len(images))
        scores = [
            anomaly_map.upsample(grid, size, sigma)[pixels].max()
            for grid, pixels in zip(grids, inside.cpu().numpy(), strict=True)
        ]
        return Scores(torch.tensor(scores), distances)

    def _maps(self, images: Tensor) -> Tensor:
        """The distances (B, h, w) of all positions."""
        if not len(self.factor):
            raise ValueError("this detector is not fitted")
        vectors = self.embed(images)
        if vectors.shape[1:] != self.mean.shape:
            raise UserError(
                f"features have shape {tuple(vectors.shape[1:])}, but the detector was fitted on "
                f"{tuple(self.mean.shape)}; score images of the size that it was fitted on"
            )
        return torch.cat([self._distances(part) for part in torch.split(vectors, _BLOCK)])

    def _distances(self, vectors: Tensor) -> Tensor:
        """|L^-1 (x - mean)| of at most `_BLOCK` images (B, h, w, d): (B, h, w)."""
        count, height, width, dim = vectors.shape
        columns = vectors.new_zeros(height * width, dim, _BLOCK)
        columns[:, :, :count] = (vectors - self.mean).flatten(1, 2).permute(1, 2, 0)
        squares = squared_lengths(self.factor, columns)
        return squares.sqrt_().T[:count].reshape(count, height, width)

    def map_ceiling(self) -> float:
        """The largest distance of a sample of the images, each left out of the fit in turn.

        Distances of images that were fitted on would be too small, because the tails of features
        are heavier than those of a Gaussian.
        """
        return self.ceiling

    def state(self) -> dict[str, Tensor]:
        """Channels (d,), means (h, w, d), factors L^-1 (h * w, packed) and the map ceiling."""
        return {
            "channels": self.channels,
            "mean": self.mean,
            "factor": self.factor,
            "ceiling": torch.tensor(self.ceiling, dtype=torch.float64),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore channels, means, factors and the map ceiling."""
        self.channels, self._chosen = state["channels"].cpu(), []
        self.mean = state["mean"].to(self.backbone.device)
        self.factor = state["factor"].to(self.backbone.device)
        self.ceiling = float(state["ceiling"])


def _width(settings: PaDiMSettings, total: int) -> int:
    """Number of channels that are chosen of `total`."""
    return min(settings.dim, total) or total


def _grid_size(shapes: list[LayerShape]) -> int:
    """Number of positions of the finest layer."""
    return max(height * width for _, height, width in shapes)
