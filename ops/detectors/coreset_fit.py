"""The fit of PatchCore's bank: each worker adds patches, then all choose a coreset together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ops.detectors.coreset_bank import choose_bank, whiten
from ops.detectors.detector import BankPicks, Checkpoint, FitCounts, finite_rows, shown_cells
from ops.distributed import Group
from ops.errors import UserError
from ops.features.whitening import Whitening
from ops.progress import ProgressCallback
from ops.search.patch_store import BoundedPatchStore, PatchStore


class RandomProjection:
    """Products of vectors (n, d) with a random matrix (d, p); vectors as they are unless 0 < p < d.

    They are computed where the vectors are, with the same matrix on every worker.
    """

    def __init__(self, dim: int, seed: int) -> None:
        self._dim, self._seed = dim, seed
        self._matrix: Tensor | None = None

    def __call__(self, vectors: Tensor) -> Tensor:
        """The projections (n, p) of vectors (n, d)."""
        width = vectors.shape[1]
        if not 0 < self._dim < width:
            return vectors
        if self._matrix is None:
            generator = torch.Generator().manual_seed(self._seed)
            self._matrix = torch.randn(width, self._dim, generator=generator) / self._dim**0.5
        self._matrix = self._matrix.to(vectors.device)
        return vectors @ self._matrix


class ChosenBank(NamedTuple):
    """A bank that all workers have chosen together; it lies on the CPU."""

    vectors: Tensor
    """Vectors (k, d), not projected, in the order of picks."""
    whitening: Whitening | None
    radius: float
    """Every patch lies within it of the bank, in the projection."""
    picks: BankPicks
    metrics: dict[str, float]


class CoresetFit:
    """Collects the patches of a worker's images, then chooses the bank among those of all workers.

    Vectors stay on the CPU; products and distances are computed on `device`. A `memory` above 0
    bounds the bytes of the vectors that are kept. With a `shrinkage`, vectors are whitened before
    they are projected. `counts` and `choose` are collective.
    """

    def __init__(
        self,
        project: RandomProjection,
        device: torch.device,
        memory: int = 0,
        shrinkage: float | None = None,
    ) -> None:
        self._project, self._device, self._shrinkage = project, device, shrinkage
        self._store = BoundedPatchStore(memory, device) if memory else PatchStore()
        self._images = self._patches = self._dropped = 0
        self._grid = 0, 0
        self._earlier_size, self._earlier_radius = 0, 0.0
        self._whitening: Whitening | None = None

    def add(self, grids: Tensor, rows: Tensor, inside: Tensor | None) -> None:
        """Keep patches (B, h, w, d) of images, whose numbers (B,) are `rows`.

        The id of a patch is row * (h * w) + its position. Patches that are not finite are dropped;
        those whose cells `inside` (B, H, W) does not reach are left out, and not counted.
        """
        vectors = grids.flatten(1, 2)
        self._grid = grids.shape[1], grids.shape[2]
        whole = torch.ones(len(grids), vectors.shape[1], dtype=torch.bool)
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

    def grow(
        self, bank: Tensor, radius: float, whitening: Whitening | None, counts: FitCounts
    ) -> None:
        """Add the bank (k, d) of an earlier fit, its covering radius, whitening and counts.

        Its ids are negative, so that they precede those of new patches. The whitening is kept,
        because the patches behind the bank are gone and cannot be whitened again.
        """
        bank = bank.cpu()
        self._store.add(bank, self._projection(bank), torch.arange(-len(bank), 0))
        self._images += counts.images
        self._patches += counts.patches or 0
        self._dropped += counts.dropped_patches or 0
        self._earlier_size, self._earlier_radius = len(bank), radius
        self._whitening = whitening.to("cpu") if whitening else None

    def _projection(self, vectors: Tensor) -> Tensor:
        """The projection (n, p); (n, 0) if vectors must be whitened first, which `choose` does."""
        return self._project(vectors) if self._shrinkage is None else vectors[:, :0]

    def counts(self, group: Group) -> FitCounts:
        """Images and patches of all workers. Raises UserError on every worker if there is none."""
        own = torch.tensor([self._images, self._patches, self._dropped])
        images, patches, dropped = group.all_reduce(own).tolist()
        if not patches:
            raise UserError("there is no good image with finite features to fit on")
        return FitCounts(images, patches=patches, dropped_patches=dropped)

    def choose(
        self, size: int, group: Group, progress: ProgressCallback, checkpoint: Checkpoint
    ) -> ChosenBank:
        """Whiten if that is set, then choose `size` patches by the exact greedy over all workers.

        The metrics bound how good the bank is, in the projection: every patch lies within `radius`
        = `local_r` + `union_r` of the bank, which is at most `factor` times the smallest radius
        that a bank of this size could have (Gonzalez 1985; Malkomes et al. 2015). `local_r` is the
        radius that bounded memory or growing adds; without either it is zero and `factor` is two.
        """
        self._store.close()
        if self._shrinkage is not None:
            self._whitening = whiten(
                self._store, self._whitening, self._shrinkage, self._project, group, self._device
            )
        vectors, coreset = choose_bank(self._store, size, group, progress, checkpoint, self._device)
        local_r = max(self._store.covering_radius, self._earlier_radius)
        local = torch.tensor([local_r, self._earlier_size, *self._grid]).double()
        local_r, *shape = group.all_reduce(local, "max").tolist()
        # With union_r zero, the bank holds all patches of the store: no radius to compare with.
        factor = {"factor": 2 * (1 + local_r / coreset.radius)} if coreset.radius else {}
        radius = local_r + coreset.radius
        metrics = factor | {
            "radius": radius,
            "local_r": local_r,
            "union_r": coreset.radius,
            "rounds": coreset.rounds,
            "picks_per_round": len(coreset.ids) / max(1, coreset.rounds),
        }
        picks = _picks(coreset.ids, *map(int, shape))
        return ChosenBank(vectors, self._whitening, radius, picks, metrics)


def _picks(ids: list[int], earlier: int, rows: int, columns: int) -> BankPicks:
    """The picks of ids; the `earlier` vectors of a grown bank have the ids up to -1."""
    numbers, patches = torch.tensor(ids), max(1, rows * columns)
    is_new = numbers >= 0
    images = (numbers // patches).where(is_new, -1)
    return BankPicks(images, (numbers % patches).where(is_new, numbers + earlier), (rows, columns))
