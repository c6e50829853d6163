"""PatchCore (Roth et al., CVPR 2022): distance to the nearest of a coreset of good patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.detectors import coreset_cost
from ops.detectors.coreset_cost import CoresetSize
from ops.detectors.coreset_fit import CoresetFit, RandomProjection
from ops.detectors.detector import (
    Checkpoint,
    Detector,
    FitCounts,
    Fitted,
    MapSettings,
    Scores,
    shown_cells,
)
from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.detectors.patch_bank import Metric, PatchBank
from ops.distributed import Group
from ops.errors import SettingError
from ops.features.backbone import Backbone
from ops.features.blocks import in_blocks
from ops.features.patch_features import Embedding, embed
from ops.features.whitening import Whitening
from ops.progress import ProgressCallback


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
    metric: Metric = "euclidean"
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

    def bank_size(self, patches: int) -> int:
        """Number of vectors of a bank that is chosen from so many patches."""
        return max(1, min(int(self.coreset_ratio * patches), self.max_bank_size))

    def coreset_size(self, fit_size: FitSize) -> CoresetSize:
        """The size of a fit with these settings."""
        patches = fit_size.images * fit_size.positions
        width = self.dim if self.embedding == "pooled" else fit_size.channels
        projected_width = self.projection if 0 < self.projection < width else width
        kept = self.bank_size(patches)
        return CoresetSize(patches, kept, width, projected_width, fit_size.workers)


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
        self.bank = self._bank(torch.empty(0, 0), None)
        self.radius = 0.0
        self._coreset = self._new_coreset()

    def _new_coreset(self) -> CoresetFit:
        settings = self.settings
        return CoresetFit(
            RandomProjection(settings.projection, settings.seed),
            self.backbone.device,
            memory=settings.fit_memory,
            shrinkage=settings.shrinkage if settings.metric == "whitened" else None,
        )

    @classmethod
    def estimate(cls, settings: PatchCoreSettings, fit_size: FitSize) -> ResourceEstimate:
        """All patches of a worker's images, or `fit_memory` bytes of them; then the bank."""
        size, whitened = settings.coreset_size(fit_size), settings.metric == "whitened"
        return coreset_cost.estimate(size, settings.fit_memory, whitened)

    @classmethod
    def timing_probe(cls, settings: PatchCoreSettings, fit_size: FitSize) -> TimingProbe:
        """A small coreset without whitening."""
        return coreset_cost.timing_probe(settings.coreset_size(fit_size), fit_size.device)

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Patch vectors (B, h, w, d), of length 1 with metric cosine (section 3.1)."""
        vectors = embed(self.backbone(images), self.settings.embedding, self.settings.dim)
        if self.settings.metric != "cosine":
            return vectors
        (unit,) = in_blocks(
            lambda part: [F.normalize(part[0], dim=-1)], [vectors], self.backbone.block
        )
        return unit

    def add_images(self, images: Tensor, rows: Tensor) -> None:
        """Keep the images' patches."""
        self._coreset.add(self.embed(images), rows, None)

    def add_inside(self, images: Tensor, rows: Tensor, inside: Tensor) -> None:
        """As `add_images`, without the patches whose own cells do not count."""
        self._coreset.add(self.embed(images), rows, inside)

    def grow(self, state: Mapping[str, Tensor], counts: FitCounts) -> None:
        """Add the earlier bank to the patches that the coreset is chosen from.

        A whitened model keeps its whitening.
        """
        self._coreset.grow(state["bank"], float(state["radius"]), self._whitening(state), counts)

    def fit(self, group: Group, progress: ProgressCallback, checkpoint: Checkpoint) -> Fitted:
        """Choose the bank by the exact greedy over all workers (section 3.2)."""
        counts = self._coreset.counts(group)
        size = self.settings.bank_size(counts.patches or 0)
        chosen = self._coreset.choose(size, group, progress, checkpoint)
        self._coreset = self._new_coreset()  # frees the memory of the patches
        self.bank = self._bank(chosen.vectors, chosen.whitening)
        self.radius = chosen.radius
        return Fitted(replace(counts, bank=len(self.bank)), chosen.metrics, picks=chosen.picks)

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
        grids = self.embed(images)
        count, height, width, dim = grids.shape
        patches = self.bank.whitened(grids.flatten(1, 2)).view(-1, dim)
        distances, rows = self.bank.nearest(patches)
        per_image = distances.view(count, -1)
        ranked = per_image
        if inside is not None:
            shown = shown_cells(inside, (height, width)).flatten(1).to(distances.device)
            ranked = per_image.where(shown, -torch.inf)
        worst = ranked.argmax(dim=1)
        worst += torch.arange(count, device=worst.device) * per_image.shape[1]
        score = distances.index_select(0, worst)
        if self.settings.reweight:
            patch, row = patches.index_select(0, worst), rows.index_select(0, worst)
            score = self.bank.reweighted(score, patch, row, self.settings.neighbours)
        return Scores(score, distances.view(count, height, width))

    @torch.inference_mode()
    def nearest(self, patch: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Distances (n,) of a patch (d,), as `embed` gives it, to the nearest vectors of the bank,
        in rising order, and their numbers (n,); n is `count`, or the size of a smaller bank.
        """
        return self.bank.ranked(self.bank.whitened(patch[None, None])[0], count)

    def map_ceiling(self) -> float:
        """The largest distance of any of the first picks to its nearest other vector."""
        return self.bank.farthest_apart()

    def state(self) -> dict[str, Tensor]:
        """The bank (k, d) in the order of picks, and its covering radius in the projection.

        With metric whitened also the whitening: mean (d,) and matrix (d, d).
        """
        state = {"bank": self.bank.vectors, "radius": torch.tensor(self.radius)}
        if self.bank.whitening:
            state |= {"mean": self.bank.whitening.mean, "whitening": self.bank.whitening.matrix}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the bank, its radius and the whitening."""
        self.radius = float(state["radius"])
        self.bank = self._bank(state["bank"], self._whitening(state))

    def _whitening(self, state: Mapping[str, Tensor]) -> Whitening | None:
        """The whitening in a state; None with other metrics."""
        if self.settings.metric != "whitened":
            return None
        # Cloned, because rounding in products may depend on the alignment of a tensor.
        return Whitening(state["mean"].clone(), state["whitening"].clone())

    def _bank(self, vectors: Tensor, whitening: Whitening | None) -> PatchBank:
        """A bank on the device of the backbone."""
        device = self.backbone.device
        return PatchBank(
            vectors.to(device),
            self.settings.metric,
            whitening.to(device) if whitening else None,
            self.backbone.block,
        )
