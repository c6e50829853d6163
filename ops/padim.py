"""PaDiM (Defard et al., 2020): one Gaussian per position over features of several layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ops import maps
from ops.backbone import Backbone
from ops.group import Group
from ops.method import (
    Demand,
    Fitted,
    Load,
    MapSettings,
    Method,
    Notes,
    Rehearsal,
    Scores,
    Watch,
)
from ops.moments import Moments

#: Images whose vectors are taken in at once: covariances are read and written each time.
_BUFFER = 32
#: Images that are scored together; fewer are filled up, as sums depend on how many there are.
_BLOCK = 8
#: Images that say how large maps of good images become.
_PROBES = 4
#: Positions of a rehearsal.
_SAMPLE = 16


@dataclass(frozen=True)
class PaDiMSettings(MapSettings):
    """Settings of PaDiM."""

    dim: int = 100
    """So many of the channels are used, drawn by `seed`; 0 = all."""
    ridge: float = 0.01
    """Added to the diagonal of covariances, which are singular with fewer images than channels."""
    seed: int = 0
    """Draws the channels."""

    def __post_init__(self) -> None:
        """Refuse what leaves covariances singular."""
        if self.ridge <= 0:
            raise ValueError(f"ridge {self.ridge} must be larger than 0")


class PaDiM(Method):
    """Mean and whitening matrix of each position; scores are Mahalanobis distances.

    Covariances are sharded by position: each worker takes in the vectors of its own positions from
    all images, so none holds all covariances in float64, and memory does not grow with the images.
    The image score is the largest value of the smoothed map, as in the paper.
    """

    name = "padim"
    Settings = PaDiMSettings
    settings: PaDiMSettings
    #: The state is float32; the moments behind it differ by about 1e-14.
    drift = 1e-6
    shares = True

    def __init__(self, settings: PaDiMSettings, backbone: Backbone) -> None:
        """Unfitted."""
        super().__init__(settings, backbone)
        self.mean = torch.empty(0, 0)
        self.whitening = torch.empty(0, 0, 0)
        self.channels = torch.empty(0, dtype=torch.int64)
        self.grid = torch.zeros(2, dtype=torch.int64)
        self._ceiling = torch.zeros(())
        self._moments: Moments | None = None
        self._waiting: list[Tensor] = []
        self._owned: list[Tensor] = []
        self._probes: dict[int, Tensor] = {}
        self._images = self._dropped = 0

    @classmethod
    def demand(cls, settings: PaDiMSettings, load: Load) -> Demand:
        """A share of the covariances in float64, then all matrices in float32."""
        positions, dim = load.positions, min(settings.dim or load.channels, load.channels)
        model = 4 * positions * (dim * dim + dim) + 8 * dim
        own = 8 * -(-positions // load.workers) * (dim * dim + dim)
        vectors = 4 * positions * dim
        return Demand(
            vectors=load.images * positions,
            kept=positions,
            fit_bytes=own + 2 * model + (_BUFFER + _PROBES) * vectors,
            score_bytes=2 * model + 2 * _BLOCK * vectors,
            model_bytes=model,
            remedy="lower --padim.dim or --input.size, or give the fit more workers",
        )

    @classmethod
    def rehearsal(cls, settings: PaDiMSettings, load: Load) -> Rehearsal:
        """Take in a buffer of images, and factor, at a few positions."""
        dim = min(settings.dim or load.channels, load.channels)
        vectors = torch.randn(_BUFFER, _SAMPLE, dim, generator=torch.Generator().manual_seed(0))
        moments = Moments(_SAMPLE, dim)

        def work() -> None:
            moments.add(vectors)
            _whitening(moments, settings.ridge)

        own = load.positions / load.workers
        return Rehearsal(work, max(1, load.images / _BUFFER) * own / _SAMPLE)

    def _chosen(self, total: int) -> Tensor:
        if not len(self.channels):
            generator = torch.Generator().manual_seed(self.settings.seed)
            dim = min(self.settings.dim or total, total)
            self.channels = torch.randperm(total, generator=generator)[:dim].sort().values
        return self.channels

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Vectors (B, h, w, d): the chosen channels, coarser layers repeated to the finest grid."""
        layers = self.backbone(images)
        size, parts, start = layers[0].shape[-2:], [], 0
        chosen = self._chosen(sum(layer.shape[1] for layer in layers))
        for layer in layers:
            mine = chosen[(chosen >= start) & (chosen < start + layer.shape[1])] - start
            part = layer[:, mine.to(layer.device)]
            parts.append(part if part.shape[-2:] == size else F.interpolate(part, size=size))
            start += layer.shape[1]
        return torch.cat(parts, dim=1).permute(0, 2, 3, 1)

    def gather(self, images: Tensor, rows: Tensor) -> None:
        """Vectors wait until they are shared."""
        for vectors, row in zip(self.embed(images).cpu(), rows.tolist(), strict=True):
            self._images += 1
            self.grid = torch.tensor(vectors.shape[:2])
            if not torch.isfinite(vectors).all():
                self._dropped += 1
                continue
            self._waiting.append(vectors.flatten(0, 1).clone())
            if len(self._probes) < _PROBES or row < max(self._probes):
                self._probes[row] = self._waiting[-1]
                self._probes = dict(sorted(self._probes.items())[:_PROBES])

    def share(self, group: Group) -> None:
        """Each worker gets what others have seen at its own positions."""
        dim = group.all_reduce(torch.tensor([len(self.channels)]), "max")
        self.grid = group.all_reduce(self.grid, "max")
        positions = int(self.grid.prod())
        if not positions:
            return
        mine = torch.cat([v[None] for v in self._waiting]) if self._waiting else None
        self._waiting = []
        empty = torch.empty(0, positions, int(dim))
        parts = (empty if mine is None else mine).tensor_split(group.size, dim=1)
        received = group.all_to_all(list(parts))
        if self._moments is None:
            own = len(torch.arange(positions).tensor_split(group.size)[group.rank])
            self._moments = Moments(own, int(dim))
        self._owned += [part for part in received if len(part)]
        if sum(len(part) for part in self._owned) >= _BUFFER:
            self._take_in()

    def _take_in(self) -> None:
        assert self._moments is not None
        if self._owned:
            self._moments.add(torch.cat(self._owned))
        self._owned = []

    def fit(self, group: Group, watch: Watch, notes: Notes) -> Fitted:  # noqa: ARG002 - no need
        """Factor the covariances of the own positions; everyone gets those of all."""
        self.share(group)
        images, dropped = group.all_reduce(torch.tensor([self._images, self._dropped])).tolist()
        if images == dropped:
            raise ValueError("there is no good image with finite features to fit on")
        self._take_in()
        moments, self._moments = self._moments, None
        assert moments is not None
        whitening = _whitening(moments, self.settings.ridge)
        watch("factor", 1, 1)
        # A worker that saw no image has drawn no channels.
        self.channels = next(part for part in group.all_gather(self.channels) if len(part))
        self.mean = torch.cat(group.all_gather(moments.mean.float()))
        self.whitening = torch.cat(group.all_gather(whitening))
        self._ceiling = self._largest(group, moments.count)
        self._probes = {}
        figures = {"images": images, "dropped_images": dropped, "positions": len(self.mean)}
        return Fitted(figures)

    def _largest(self, group: Group, count: int) -> Tensor:
        """The largest distance of some good images, were each left out of its own fit.

        Leaving an image out changes a covariance by one outer product (Sherman and Morrison 1950).
        """
        rows = torch.cat(group.all_gather(torch.tensor(sorted(self._probes), dtype=torch.int64)))
        chosen = set(rows.sort().values[:_PROBES].tolist())
        # Distances of good images are about this large.
        found = torch.tensor([float(self.mean.shape[1]) ** 0.5], dtype=torch.float64)
        for row, vectors in self._probes.items():
            if row in chosen and count > 1:
                within = self._distances(vectors[None])[0].double().square()
                left = (1 - within * count / (count - 1) ** 2).clamp(min=1e-3)
                out = (within / left).sqrt() * count / (count - 1)
                found = found.maximum(out.max())
        return group.all_reduce(found, "max")[0].float()

    def _distances(self, vectors: Tensor) -> Tensor:
        """Mahalanobis distances (B, P) of vectors (B, P, d)."""
        count = len(vectors)
        apart = torch.zeros(self.mean.shape[0], self.mean.shape[1], _BLOCK, device=vectors.device)
        apart[:, :, :count] = (vectors - self.mean).permute(1, 2, 0)
        return torch.bmm(self.whitening, apart).square().sum(dim=1).sqrt().T[:count]

    @torch.inference_mode()
    def score(self, images: Tensor) -> Scores:
        """Equation 2 at each position; the image's score is the largest of its drawn map."""
        if not len(self.mean):
            raise ValueError("this detector is not fitted")
        height, width = self.grid.tolist()
        found = [
            self._distances(self.embed(part).flatten(1, 2)) for part in torch.split(images, _BLOCK)
        ]
        grids = torch.cat(found).view(-1, height, width)
        drawn = [
            float(maps.draw(grid, images.shape[-1], self.settings.sigma).max())
            for grid in grids.cpu().numpy()
        ]
        return Scores(torch.tensor(drawn, device=images.device), grids)

    def map_ceiling(self) -> float:
        """The largest distance of some good images, each left out of its own fit."""
        return float(self._ceiling)

    def state(self) -> dict[str, Tensor]:
        """Means (P, d), whitening matrices (P, d, d), channels (d,), the grid's (h, w)."""
        return {
            "mean": self.mean,
            "whitening": self.whitening,
            "channels": self.channels,
            "grid": self.grid,
            "ceiling": self._ceiling,
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it over."""
        device = self.backbone.device
        self.mean, self.whitening = state["mean"].to(device), state["whitening"].to(device)
        self.channels, self.grid = state["channels"].cpu(), state["grid"].cpu()
        self._ceiling = state["ceiling"].cpu()


def _whitening(moments: Moments, ridge: float) -> Tensor:
    """W (p, d, d), float32, with W^T W = (covariance + ridge)^-1: the inverse Cholesky factor."""
    positions, dim = moments.mean.shape
    out = torch.empty(positions, dim, dim)
    eye = torch.eye(dim, dtype=torch.float64)
    for some in moments.chunks():
        factor = torch.linalg.cholesky(moments.covariance(some) + ridge * eye)
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        out[some] = inverse.float()
    return out
