"""PatchCore (Roth et al., CVPR 2022): distance to the nearest of a coreset of good patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ops.detectors.detector import Checkpoint, Detector, Fitted, MapSettings, Scores, finite_rows
from ops.detectors.fit_cost import FitSize, ResourceEstimate, TimingProbe
from ops.distributed import Alone, Group
from ops.errors import SettingError, UserError
from ops.features.backbone import Backbone
from ops.features.patch_features import Embedding, embed
from ops.features.whitening import Whitening, sample, shared
from ops.progress import ProgressCallback
from ops.search.coreset import Coreset, greedy
from ops.search.distance import squared
from ops.search.neighbours import SCRATCH, Bank
from ops.search.patch_store import BoundedShard, Shard, bytes_each

#: Points, picks and dimensions of the coreset that stands for a fit before it starts.
_SAMPLE = 100_000, 1_000, 128
_COUNTS = ("images", "patches", "dropped_patches")
#: Patches whose vectors meet at a time for a covariance.
_PART = 4096


@dataclass(frozen=True)
class PatchCoreSettings(MapSettings):
    """Settings of PatchCore."""

    coreset_ratio: float = 0.01
    """Share of the patches that the bank keeps."""
    max_bank_size: int = 20_000
    """The bank never holds more vectors than this: scoring costs more than the backbone beyond."""
    embedding: Embedding = "pooled"
    """pooled: as the authors' code averages neighbourhoods; concat: channels side by side."""
    metric: Literal["euclidean", "whitened"] = "euclidean"
    """whitened: what varies among good patches counts less, as in a Mahalanobis distance; for parts
    whose surface varies. Not with `fit_memory`."""
    shrinkage: float = 0.01
    """With whitened: share of the mean variance that is added to all variances; above 0."""
    dim: int = 1024
    """Length of pooled vectors."""
    projection: int = 128
    """The coreset is chosen in a random projection to this many dimensions; 0 = none."""
    seed: int = 0
    """Seed of the projection."""
    fit_memory: int = 0
    """Bytes of patches that each worker may hold while fitting; 0 = all of them, which is exact."""
    reweight: bool = True
    """Weigh image scores by the neighbourhood of the nearest vector (equation 7)."""
    neighbours: int = 9
    """Size b of that neighbourhood."""

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.metric == "whitened" and self.fit_memory:
            raise SettingError(
                f"fit_memory {self.fit_memory} thins patches before the metric is known; with "
                "metric = whitened it must be 0: lower input.size or take more workers instead"
            )
        if self.metric == "whitened" and not self.shrinkage > 0:
            raise SettingError(
                f"shrinkage {self.shrinkage} must be above 0: features that never vary have no "
                "variance to divide by"
            )


class PatchCore(Detector):
    """A bank of locally averaged patch features, thinned by the exact greedy coreset.

    Scores are Euclidean distances (the authors' code reports squared ones), with `metric` whitened
    after whitening by a sample of the good patches.
    """

    name = "patchcore"
    Settings = PatchCoreSettings
    settings: PatchCoreSettings

    def __init__(self, settings: PatchCoreSettings, backbone: Backbone) -> None:
        """Unfitted, with an empty bank."""
        super().__init__(settings, backbone)
        self.bank = torch.empty(0, 0)
        self.radius = 0.0
        self._whitening: Whitening | None = None
        self._search: Bank | None = None
        self._matrix: Tensor | None = None
        self._shard = BoundedShard(settings.fit_memory) if settings.fit_memory else Shard()
        self._grown: Mapping[str, float] = {}
        self._gathered = 0
        self._images = self._dropped = 0

    @classmethod
    def estimate(cls, settings: PatchCoreSettings, load: FitSize) -> ResourceEstimate:
        """Every patch of a worker's share, or what its memory is bounded to; then the bank."""
        patches = load.images * load.positions
        concat = settings.embedding == "concat"
        width = load.channels if concat else settings.dim
        narrow = settings.projection if 0 < settings.projection < width else width
        kept = max(1, min(int(settings.coreset_ratio * patches), settings.max_bank_size))
        share = -(-patches // load.workers) * bytes_each(width, narrow)
        bank = kept * width * 4
        whitened = settings.metric == "whitened"
        square = width * (width + 1) if whitened else 0
        bounded = "" if whitened else "bound it with --patchcore.fit_memory, or "
        return ResourceEstimate(
            vectors=patches,
            kept=kept,
            fit_bytes=(min(share, settings.fit_memory) if settings.fit_memory else share)
            + 2 * bank
            # In float64 the covariance, its eigenvectors, and what finding them takes.
            + square * 8 * 6,
            score_bytes=2 * bank + 2 * SCRATCH + 4 * square,
            model_bytes=bank + 4 * square,
            remedy=f"{bounded}lower --patchcore.max_bank_size or --input.size",
        )

    @classmethod
    def timing_probe(cls, settings: PatchCoreSettings, load: FitSize) -> TimingProbe:
        """A small coreset, without whitening; the greedy's time goes with points times picks."""
        n, k, width = _SAMPLE
        # Features vary along few directions; without that, every point would be as far as another.
        fall = torch.arange(1, width + 1) ** -0.5
        points = torch.randn(n, width, generator=torch.Generator().manual_seed(0)) * fall
        estimate = cls.estimate(settings, load)
        times = estimate.vectors * estimate.kept / (n * k) / load.workers
        return TimingProbe(lambda: greedy(points, torch.arange(n), k, Alone()), times)

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Patch vectors (B, h, w, d)."""
        return embed(self.backbone(images), self.settings.embedding, self.settings.dim)

    def add_images(self, images: Tensor, rows: Tensor) -> None:
        """Keep every image's patches; their ids are row * patches + patch."""
        for vectors, row in zip(self.embed(images).cpu(), rows.tolist(), strict=True):
            flat = vectors.flatten(0, 1)
            ids = row * len(flat) + torch.arange(len(flat))
            keep = finite_rows(flat)
            self._images += 1
            self._dropped += int((~keep).sum())
            self._gathered += int(keep.sum())
            # One product per image, so that its bits do not depend on the batch.
            self._shard.add(flat[keep], self._projected(flat)[keep], ids[keep])

    @property
    def _whitens(self) -> bool:
        return self.settings.metric == "whitened"

    def _projected(self, vectors: Tensor) -> Tensor:
        """The projection; of vectors that are to be whitened first, nothing yet."""
        return vectors[:, :0] if self._whitens else self._project(vectors)

    def _project(self, vectors: Tensor) -> Tensor:
        width, dim = vectors.shape[1], self.settings.projection
        if not 0 < dim < width:
            return vectors
        if self._matrix is None:
            generator = torch.Generator().manual_seed(self.settings.seed)
            self._matrix = torch.randn(width, dim, generator=generator) / dim**0.5
        return vectors @ self._matrix

    def grow(self, state: Mapping[str, Tensor], figures: Mapping[str, float]) -> None:
        """The old bank takes part in the greedy like new patches; its ids are below theirs.

        A whitened model stays whitened as it was: its old patches cannot be whitened anew.
        """
        bank = state["bank"].cpu()
        self._shard.add(bank, self._projected(bank), torch.arange(-len(bank), 0))
        self._grown = figures
        if self._whitens:
            self._whitening = Whitening(state["mean"].cpu(), state["whitening"].cpu())

    def fit(self, group: Group, watch: ProgressCallback, checkpoint: Checkpoint) -> Fitted:
        """The exact greedy over all ranks; the bank is the unprojected vectors, in pick order.

        Whitening comes first, so that it covers the patches by the distances that scores are.

        The figures prove how good it is, in the projection: every patch lies within `radius` =
        `local_r` + `union_r` of the bank, which is at most `factor` times the least that any bank
        of this size could reach (Gonzalez 1985; Malkomes et al. 2015). If no patch was let go, by
        bounded memory or by growing, `local_r` is zero and the factor is two.
        """
        old = self._grown
        own = [self._images, self._gathered, self._dropped]
        counts = torch.tensor([n + int(old.get(f, 0)) for n, f in zip(own, _COUNTS, strict=True)])
        images, patches, dropped = group.all_reduce(counts).tolist()
        if not patches:
            raise UserError("there is no good image with finite features to fit on")
        self._shard.close()
        if self._whitens:
            self._whiten(group)
        width, narrow = self._widths(group)
        ids, projected = self._shard.points(narrow)
        k = max(1, min(int(self.settings.coreset_ratio * patches), self.settings.max_bank_size))

        def told(found: Coreset) -> None:
            watch("coreset", len(found.ids), k)
            if group.rank == 0:
                checkpoint.write((found.ids, found.squared, found.rounds))

        begun = _begun(group, checkpoint)
        chosen = greedy(projected, ids, k, group, watch=told, begun=begun)
        self.bank = self._picked(ids, torch.tensor(chosen.ids), width, group)
        cover = torch.tensor([max(self._shard.cover, old.get("radius", 0.0))])
        local_r = float(group.all_reduce(cover.double(), "max"))
        self.radius = local_r + chosen.radius
        self._shard = Shard()
        # Without a union_r, the bank is all that was kept, and there is no bound to compare with.
        proof = {"factor": 2 * (1 + local_r / chosen.radius)} if chosen.radius else {}
        figures = proof | {
            "images": images,
            "patches": patches,
            "dropped_patches": dropped,
            "bank": len(self.bank),
            "radius": self.radius,
            "local_r": local_r,
            "union_r": chosen.radius,
            "rounds": chosen.rounds,
            "picks_per_round": len(chosen.ids) / max(1, chosen.rounds),
        }
        return Fitted(figures)

    def _widths(self, group: Group) -> tuple[int, int]:
        """The shards' dimensions (d, p), which ranks without a patch do not know. Collective."""
        widths = torch.stack(group.all_gather(torch.tensor([self._shard.width])))
        width, narrow = widths.flatten(0, 1).amax(dim=0).tolist()
        return width, narrow

    def _whiten(self, group: Group) -> None:
        """Whiten and project what the shard holds, as a grown model did or by a sample. Collective.

        Raises UserError on every rank if the sample does not vary.
        """
        width, _ = self._widths(group)
        found = shared(self._whitening, width, group)
        if found is None:
            ids, _ = self._shard.points(0)
            chosen = sample(ids, group)
            parts = (self._picked(ids, part, width, group) for part in torch.split(chosen, _PART))
            # Once and for all ranks: another processor would find other bits.
            own = Whitening.of(parts, self.settings.shrinkage) if group.rank == 0 else None
            for _ in parts:
                pass  # the other ranks only take part
            found = shared(own, width, group)
        assert found
        self._whitening = whiten = found

        def change(vectors: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
            vectors = whiten(vectors) if ids[0] >= 0 else vectors  # a grown bank is whitened
            return vectors, self._project(vectors)

        self._shard.change(change)

    def _picked(self, ids: Tensor, picks: Tensor, width: int, group: Group) -> Tensor:
        """The full vectors of picked ids, in pick order, from whichever rank holds each."""
        own = torch.nonzero(torch.isin(ids, picks)).flatten()
        all_ids = torch.cat(group.all_gather(ids[own]))
        vectors = torch.cat(group.all_gather(self._shard.vectors(own, width)))
        order = torch.argsort(all_ids)
        return vectors[order[torch.searchsorted(all_ids[order], picks)]].contiguous()

    @torch.inference_mode()
    def score(self, images: Tensor) -> Scores:
        """Equations 6 and 7: the largest patch distance, re-weighted; maps are patch distances."""
        if not len(self.bank):
            raise ValueError("this detector is not fitted")
        if self._search is None or self._search.vectors is not self.bank:
            self._search = Bank(self.bank)
        search = self._search
        image_scores, maps = [], []
        for vectors in self.embed(images):
            flat = vectors.flatten(0, 1)
            if self._whitening:
                flat = self._whitening(flat)
            found = search.nearest(flat)
            distance = found.value.sqrt()
            worst = int(distance.argmax())
            image_scores.append(self._image_score(search, flat[worst], int(found.row[worst])))
            maps.append(distance.view(vectors.shape[:2]))
        return Scores(torch.stack(image_scores), torch.stack(maps))

    def _image_score(self, search: Bank, patch: Tensor, index: int) -> Tensor:
        score = squared(patch, self.bank[index]).sqrt()
        if not self.settings.reweight or index < 0:
            return score
        around = search.closest(index, self.settings.neighbours)
        distances = squared(self.bank[around], patch).sqrt()
        # The softmax weight of the nearest vector, shifted so that exp cannot overflow.
        shift = torch.maximum(distances.max(), score)
        weight = (score - shift).exp() / (distances - shift).exp().sum()
        return (1 - weight) * score

    def map_ceiling(self) -> float:
        """The largest distance of one of the first 512 picks to the nearest other vector."""
        if len(self.bank) < 2:
            return float(self.bank.norm())
        distances = torch.cdist(self.bank[:512], self.bank)
        distances.fill_diagonal_(torch.inf)
        return float(distances.amin(dim=1).max())

    def state(self) -> dict[str, Tensor]:
        """The bank (k, d) in pick order, and the covering radius in the projection.

        If whitened, also what images are whitened by: mean (d,) and matrix (d, d).
        """
        state = {"bank": self.bank, "radius": torch.tensor(self.radius)}
        if self._whitening:
            state |= {"mean": self._whitening.mean, "whitening": self._whitening.matrix}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the bank over, and what images are whitened by."""
        device = self.backbone.device
        self.bank = state["bank"].to(device)
        self.radius = float(state["radius"])
        if self._whitens:
            # Copied, as the bits of products may depend on where in memory a tensor begins.
            mean, matrix = state["mean"].clone(), state["whitening"].clone()
            self._whitening = Whitening(mean.to(device), matrix.to(device))


def _begun(group: Group, checkpoint: Checkpoint) -> Coreset | None:
    """What an earlier attempt noted, as rank 0 reads it. Collective."""
    ids, squared, rounds = (checkpoint.read() if group.rank == 0 else None) or ([], [], 0)
    ids, rounds_ = torch.tensor(ids, dtype=torch.int64), torch.tensor([rounds])
    all_ids = torch.cat(group.all_gather(ids)).tolist()
    all_squared = torch.cat(group.all_gather(torch.tensor(squared))).tolist()
    if not all_ids:
        return None
    return Coreset(all_ids, all_squared, rounds=int(group.all_reduce(rounds_, "max")))
