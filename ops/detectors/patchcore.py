"""PatchCore (Roth et al., CVPR 2022): distance to the nearest of a coreset of good patches."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.detectors.coreset_bank import choose_bank, whiten
from ops.detectors.detector import (
    BankPicks,
    Checkpoint,
    Detector,
    FitCounts,
    Fitted,
    MapSettings,
    Scores,
    finite_rows,
    shown_cells,
)
from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.distributed import Alone, Group
from ops.errors import SettingError, UserError
from ops.features.backbone import Backbone
from ops.features.blocks import in_blocks
from ops.features.patch_features import Embedding, embed
from ops.features.whitening import Whitening
from ops.progress import ProgressCallback
from ops.search import axes_search, device_search
from ops.search.coreset import greedy
from ops.search.distance import squared
from ops.search.float32_products import float32_products
from ops.search.neighbours import Bank
from ops.search.patch_store import BoundedPatchStore, PatchStore, bytes_per_vector

#: Points, picks and dimensions of the coreset that is timed before a fit.
_PROBE = 100_000, 1_000, 128


@dataclass(frozen=True)
class PatchCoreSettings(MapSettings):
    """Settings of PatchCore."""

    coreset_ratio: float = 0.01
    """Share of all patches that the bank keeps."""
    max_bank_size: int = 20_000
    """Largest number of vectors in the bank; above about 20,000, searching the bank takes longer
    than the backbone."""
    embedding: Embedding = "pooled"
    """pooled: neighbourhoods averaged and pooled to `dim` numbers, as in the authors' code; concat:
    the channels of all layers side by side, averaged over 3 x 3 positions; plain: the same without
    the averages, for vision transformers, whose patches see their surroundings anyway."""
    metric: Literal["euclidean", "whitened", "cosine"] = "euclidean"
    """whitened: Mahalanobis distances, in which features that vary among good patches count less;
    for parts whose surface varies. Cannot be combined with `fit_memory`. cosine: 1 - the cosine of
    the angle between features, whose lengths do not count; for vision transformers."""
    shrinkage: float = 0.01
    """With metric whitened: share of the mean variance that is added to all variances; above 0."""
    dim: int = 1024
    """Length of vectors with embedding pooled."""
    projection: int = 128
    """Dimensions of the random projection in which the coreset is chosen; 0 = no projection."""
    seed: int = 0
    """Seed of the random projection."""
    fit_memory: int = 0
    """Memory for patches on each worker of a fit, in bytes; patches beyond it are thinned early.
    0 = no limit, which gives the exact coreset."""
    reweight: bool = True
    """Weigh image scores by the distances to the neighbours of the nearest vector (equation 7)."""
    neighbours: int = 9
    """Number b of these neighbours."""

    def __post_init__(self) -> None:
        """Raise SettingError for settings that cannot be combined."""
        if self.metric == "whitened" and self.fit_memory:
            raise SettingError(
                f"fit_memory {self.fit_memory} must be 0 with metric = whitened, because it thins "
                "patches before the whitening is known; lower input.size or use more workers"
            )
        if self.metric == "whitened" and not self.shrinkage > 0:
            raise SettingError(
                f"shrinkage {self.shrinkage} must be above 0: features that do not vary have zero "
                "variance"
            )


class PatchCore(Detector):
    """A bank of locally averaged patch features, thinned by the exact greedy coreset.

    Scores are Euclidean distances (the authors' code reports squared ones). With metric whitened,
    features are first whitened by the covariance of a sample of the good patches. With metric
    cosine, they are scaled to length 1, and scores are half the squared distances, 1 - cosine.

    Features, projections and the whitening are computed on the backbone's device, whose rounding
    they follow: fits on a CPU and on a GPU may choose other patches. The greedy itself makes the
    same choice of the same projections on any device.
    """

    name = "patchcore"
    has_picks = True
    Settings = PatchCoreSettings
    settings: PatchCoreSettings

    def __init__(self, settings: PatchCoreSettings, backbone: Backbone) -> None:
        """A detector that is not fitted, with an empty bank."""
        super().__init__(settings, backbone)
        self.bank = torch.empty(0, 0)
        self.radius = 0.0
        self._whitening: Whitening | None = None
        self._search: Bank | None = None
        self._matrix: Tensor | None = None
        self._store = (
            BoundedPatchStore(settings.fit_memory, backbone.device)
            if settings.fit_memory
            else PatchStore()
        )
        self._images = self._patches = self._dropped = 0
        self._grown_radius = 0.0
        self._grown = 0
        self._grid = 0, 0

    @classmethod
    def estimate(cls, settings: PatchCoreSettings, fit_size: FitSize) -> ResourceEstimate:
        """All patches of a worker's images, or `fit_memory` bytes of them; then the bank."""
        patches = fit_size.images * fit_size.positions
        pooled = settings.embedding == "pooled"
        width = settings.dim if pooled else fit_size.channels
        narrow = settings.projection if 0 < settings.projection < width else width
        kept = max(1, min(int(settings.coreset_ratio * patches), settings.max_bank_size))
        share = -(-patches // fit_size.workers) * bytes_per_vector(width, narrow)
        bank = kept * width * 4
        whitened = settings.metric == "whitened"
        square = width * (width + 1) if whitened else 0
        bounded = "" if whitened else "bound it with --patchcore.fit_memory, or "
        return ResourceEstimate(
            vectors=patches,
            kept=kept,
            fit_bytes=(min(share, settings.fit_memory) if settings.fit_memory else share)
            + 2 * bank
            # The covariance, its eigenvectors and the workspace of the solver, in float64.
            + square * 8 * 6,
            score_bytes=3 * bank + axes_search.SCRATCH + 4 * square,
            model_bytes=bank + 4 * square,
            # Patches stay in the node; where a GPU has too little memory, so does the greedy.
            fit_host_bytes=min(share, settings.fit_memory) if settings.fit_memory else share,
            gpu_scratch=device_search.SCRATCH,
            remedy=f"{bounded}lower --patchcore.max_bank_size or --input.size",
        )

    @classmethod
    def timing_probe(cls, settings: PatchCoreSettings, fit_size: FitSize) -> TimingProbe:
        """A small coreset without whitening; the greedy's time grows with points times picks."""
        n, k, width = _PROBE
        # Like features, points vary along few directions; else all distances would be similar.
        fall = torch.arange(1, width + 1) ** -0.5
        points = torch.randn(n, width, generator=torch.Generator().manual_seed(0)) * fall
        points = points.to(fit_size.device)
        estimate = cls.estimate(settings, fit_size)
        times = estimate.vectors * estimate.kept / (n * k) / fit_size.workers
        return TimingProbe(lambda: greedy(points, torch.arange(n), k, Alone()), times)

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Patch vectors (B, h, w, d), of length 1 with metric cosine."""
        vectors = embed(self.backbone(images), self.settings.embedding, self.settings.dim)
        if not self._cosine:
            return vectors
        (unit,) = in_blocks(
            lambda part: [F.normalize(part[0], dim=-1)], [vectors], self.backbone.block
        )
        return unit

    def add_images(self, images: Tensor, rows: Tensor) -> None:
        """Keep the images' patches; the id of a patch is row * patches per image + its position."""
        self._add(images, rows, None)

    def add_inside(self, images: Tensor, rows: Tensor, inside: Tensor) -> None:
        """As `add_images`, without the patches whose own cells do not count."""
        self._add(images, rows, inside)

    def _add(self, images: Tensor, rows: Tensor, inside: Tensor | None) -> None:
        grids = self.embed(images)
        vectors = grids.flatten(1, 2)
        self._grid = grids.shape[1], grids.shape[2]
        whole = torch.ones(len(images), vectors.shape[1], dtype=torch.bool)
        shown = whole if inside is None else shown_cells(inside, grids.shape[1:3]).flatten(1).cpu()
        # One matrix product per image, so that rounding does not depend on the batch. All are
        # computed on the device before the first is waited for.
        computed = [(self._projection(flat), finite_rows(flat)) for flat in vectors]
        for flat, (projected, finite), row, own in zip(
            vectors.cpu(), computed, rows.tolist(), shown, strict=True
        ):
            ids = row * len(flat) + torch.arange(len(flat))
            keep = finite.cpu() & own
            self._images += 1
            self._dropped += int((own & ~keep).sum())
            self._patches += int(keep.sum())
            self._store.add(flat[keep], projected.cpu()[keep], ids[keep])

    @property
    def _whitens(self) -> bool:
        return self.settings.metric == "whitened"

    @property
    def _cosine(self) -> bool:
        return self.settings.metric == "cosine"

    def _distance(self, squares: Tensor) -> Tensor:
        """Distances of the metric from squared Euclidean ones."""
        return squares / 2 if self._cosine else squares.sqrt()

    def _projection(self, vectors: Tensor) -> Tensor:
        """The projection (n, p); (n, 0) if vectors must be whitened first, which `fit` does."""
        return vectors[:, :0] if self._whitens else self._project(vectors)

    def _project(self, vectors: Tensor) -> Tensor:
        width, dim = vectors.shape[1], self.settings.projection
        if not 0 < dim < width:
            return vectors
        if self._matrix is None:
            generator = torch.Generator().manual_seed(self.settings.seed)
            self._matrix = torch.randn(width, dim, generator=generator) / dim**0.5
        self._matrix = self._matrix.to(vectors.device)
        return vectors @ self._matrix

    def grow(self, state: Mapping[str, Tensor], counts: FitCounts) -> None:
        """Add the earlier bank to the patches that the coreset is chosen from.

        Its ids are negative, so that they precede those of new patches. A whitened model keeps its
        whitening, because the patches behind its bank are gone and cannot be whitened again.
        """
        bank = state["bank"].cpu()
        self._store.add(bank, self._projection(bank), torch.arange(-len(bank), 0))
        self._images += counts.images
        self._patches += counts.patches or 0
        self._dropped += counts.dropped_patches or 0
        self._grown_radius, self._grown = float(state["radius"]), len(bank)
        if self._whitens:
            self._whitening = Whitening(state["mean"].cpu(), state["whitening"].cpu())

    def fit(self, group: Group, progress: ProgressCallback, checkpoint: Checkpoint) -> Fitted:
        """Choose the bank by the exact greedy over all workers, after whitening if that is set.

        The metrics bound how good the bank is, in the projection: every patch lies within `radius`
        = `local_r` + `union_r` of the bank, which is at most `factor` times the smallest radius
        that a bank of this size could have (Gonzalez 1985; Malkomes et al. 2015). `local_r` is the
        radius that bounded memory or growing adds; without either it is zero and `factor` is two.
        """
        own = torch.tensor([self._images, self._patches, self._dropped])
        images, patches, dropped = group.all_reduce(own).tolist()
        if not patches:
            raise UserError("there is no good image with finite features to fit on")
        self._store.close()
        if self._whitens:
            self._whitening = whiten(
                self._store,
                self._whitening,
                self.settings.shrinkage,
                self._project,
                group,
                self.backbone.device,
            ).to(self.backbone.device)
        size = max(1, min(int(self.settings.coreset_ratio * patches), self.settings.max_bank_size))
        device = self.backbone.device
        bank, coreset = choose_bank(self._store, size, group, progress, checkpoint, device)
        self._move(bank, self._whitening)
        local_r = max(self._store.covering_radius, self._grown_radius)
        local = torch.tensor([local_r, self._grown, *self._grid]).double()
        local_r, *shape = group.all_reduce(local, "max").tolist()
        self.radius = local_r + coreset.radius
        self._store = PatchStore()
        counts = FitCounts(
            images=images, patches=patches, dropped_patches=dropped, bank=len(self.bank)
        )
        # With union_r zero, the bank holds all patches of the store: no radius to compare with.
        factor = {"factor": 2 * (1 + local_r / coreset.radius)} if coreset.radius else {}
        metrics = factor | {
            "radius": self.radius,
            "local_r": local_r,
            "union_r": coreset.radius,
            "rounds": coreset.rounds,
            "picks_per_round": len(coreset.ids) / max(1, coreset.rounds),
        }
        return Fitted(counts, metrics, picks=_picks(coreset.ids, *map(int, shape)))

    @torch.inference_mode()
    def score(self, images: Tensor) -> Scores:
        """Equations 6 and 7: the largest patch distance, re-weighted; maps are patch distances."""
        return self._scores(images, None)

    @torch.inference_mode()
    def score_inside(self, images: Tensor, inside: Tensor) -> Scores:
        """As `score`; patches whose own cells do not count are never the largest."""
        return self._scores(images, inside)

    def _scores(self, images: Tensor, inside: Tensor | None) -> Scores:
        if not len(self.bank):
            raise ValueError("this detector is not fitted")
        patches = self.embed(images)
        count, height, width, dim = patches.shape
        vectors = self._whitened(patches.flatten(1, 2)).view(-1, dim)
        nearest = self._index().nearest(vectors)
        distance = self._distance(nearest.value).view(count, -1)
        ranked = distance
        if inside is not None:
            shown = shown_cells(inside, (height, width)).flatten(1).to(distance.device)
            ranked = distance.where(shown, -torch.inf)
        worst = ranked.argmax(dim=1)
        worst += torch.arange(count, device=worst.device) * distance.shape[1]
        score = distance.flatten().index_select(0, worst)
        if self.settings.reweight:
            row = nearest.row.index_select(0, worst)
            score = self._weighed(score, vectors.index_select(0, worst), row)
        return Scores(score, distance.view(count, height, width))

    @torch.inference_mode()
    def nearest(self, patch: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Distances (n,) of a patch (d,), as `embed` gives it, to the nearest vectors of the bank,
        in rising order, and their numbers (n,); n is `count`, or the size of a smaller bank.
        """
        squares = squared(self.bank, self._whitened(patch[None, None])[0])
        near = squares.sort(stable=True)
        return self._distance(near.values[:count]), near.indices[:count]

    def _whitened(self, patches: Tensor) -> Tensor:
        """Patches (B, n, d), whitened if that is set, in the passes of the backbone."""
        whitening = self._whitening
        if not whitening:
            return patches
        with float32_products():
            (whitened,) = in_blocks(
                lambda part: [whitening(part[0])], [patches], self.backbone.block
            )
        return whitened

    def _index(self) -> Bank:
        if self._search is None or self._search.vectors is not self.bank:
            self._search = Bank(self.bank)
        return self._search

    def _weighed(self, score: Tensor, patch: Tensor, row: Tensor) -> Tensor:
        """Scores (B,) of patches (B, d), weighed by the neighbours of their nearest rows (B,).

        Scores that are not finite, whose row is -1, are left as they are.
        """
        neighbours = self._index().neighbours(row.clamp_min(0), self.settings.neighbours)
        neighbours = neighbours.clamp_min(0)  # -1 where no distance is finite
        near = self.bank.index_select(0, neighbours.flatten()).view(*neighbours.shape, -1)
        distances = self._distance(squared(near, patch.unsqueeze(1)))
        if score.device.type == "cpu":  # one by one: kernels could round by the batch's shape
            pairs = zip(score, distances, strict=True)
            weight = torch.stack([_softmax_weight(s, d) for s, d in pairs])
        else:
            weight = _softmax_weight(score, distances)
        return ((1 - weight) * score).where(row >= 0, score)

    def map_ceiling(self) -> float:
        """The largest distance of any of the first 512 picks to its nearest other vector."""
        if len(self.bank) < 2:
            return 0.5 if self._cosine else float(self.bank.norm())
        with float32_products():
            distances = torch.cdist(self.bank[:512], self.bank)
        distances.fill_diagonal_(torch.inf)
        farthest = distances.amin(dim=1).max()
        return float(self._distance(farthest.square()) if self._cosine else farthest)

    def state(self) -> dict[str, Tensor]:
        """The bank (k, d) in the order of picks, and its covering radius in the projection.

        With metric whitened also the whitening: mean (d,) and matrix (d, d).
        """
        state = {"bank": self.bank, "radius": torch.tensor(self.radius)}
        if self._whitening:
            state |= {"mean": self._whitening.mean, "whitening": self._whitening.matrix}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the bank, its radius and the whitening."""
        self.radius = float(state["radius"])
        whitening = None
        if self._whitens:
            # Cloned, because rounding in products may depend on the alignment of a tensor.
            whitening = Whitening(state["mean"].clone(), state["whitening"].clone())
        self._move(state["bank"], whitening)

    def _move(self, bank: Tensor, whitening: Whitening | None) -> None:
        """Keep what scoring needs on the device of the backbone."""
        device = self.backbone.device
        self.bank = bank.to(device)
        if whitening:
            self._whitening = Whitening(*(tensor.to(device) for tensor in whitening))


def _picks(ids: list[int], grown: int, rows: int, columns: int) -> BankPicks:
    """The picks of ids; `grown` vectors of an earlier bank have the ids up to -1."""
    numbers, patches = torch.tensor(ids), max(1, rows * columns)
    is_new = numbers >= 0
    images = (numbers // patches).where(is_new, -1)
    return BankPicks(images, (numbers % patches).where(is_new, numbers + grown), (rows, columns))


def _softmax_weight(score: Tensor, distances: Tensor) -> Tensor:
    """exp(score) over the sum of exp(distances), of one image (k,) or of a batch (B, k).

    Shifted so that exp cannot overflow.
    """
    shift = torch.maximum(distances.amax(dim=-1), score)
    terms = (distances - shift.unsqueeze(-1)).exp()
    # The sum of a batch is taken in a fixed order, so that it does not depend on the batch.
    total = terms.sum() if terms.dim() == 1 else functools.reduce(torch.add, terms.unbind(dim=-1))
    return (score - shift).exp() / total
