"""The bank of PatchCore: patches that all workers hold, whitened if asked, thinned to a coreset.

Every function is collective: all workers of the group must call it together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ops.detectors.detector import Checkpoint
from ops.distributed import Group
from ops.features.whitening import Whitening, broadcast_whitening, sample_ids
from ops.progress import ProgressCallback
from ops.search.coreset import Coreset, greedy
from ops.search.lazy_distances import SCRATCH_ON_GPU, bytes_per_point
from ops.search.patch_store import PatchStore

log = logging.getLogger(__name__)

#: Patches whose vectors are gathered at a time for the covariance.
_CHUNK = 4096


def choose_bank(
    store: PatchStore,
    size: int,
    group: Group,
    progress: ProgressCallback,
    checkpoint: Checkpoint,
    device: torch.device,
) -> tuple[Tensor, Coreset]:
    """Choose `size` patches by the exact greedy over the projections of all workers.

    The greedy runs on `device` if it has the memory; its picks are the same on any. Returns the
    bank (k, d), unprojected, in the order of picks, on the CPU, and the coreset. After each round
    rank 0 saves the picks to the checkpoint, from which a restarted fit resumes.
    """
    width, projected_width = _widths(store, group)
    ids, projected = store.points(projected_width)

    def save(coreset: Coreset) -> None:
        progress("coreset", len(coreset.ids), size)
        if group.rank == 0:
            checkpoint.write((coreset.ids, coreset.squared, coreset.rounds))

    resume_from = _saved_picks(group, checkpoint)
    points = projected.to(device) if _fits(projected, device) else projected
    coreset = greedy(points, ids, size, group, on_round=save, resume_from=resume_from)
    bank = _gather_vectors(store, ids, torch.tensor(coreset.ids), width, group)
    return bank, coreset


def _fits(points: Tensor, device: torch.device) -> bool:
    """Whether a GPU has the memory for the greedy over points (n, p)."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return True
    needed = len(points) * bytes_per_point(points.shape[1]) + SCRATCH_ON_GPU
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    if needed > free:
        log.warning(
            "the coreset of %d patches is chosen on the CPU: the GPU has %.1f of %.1f GiB free",
            len(points),
            free / 2**30,
            needed / 2**30,
        )
    return needed <= free


def whiten(
    store: PatchStore,
    fitted: Whitening | None,
    shrinkage: float,
    project: Callable[[Tensor], Tensor],
    group: Group,
    device: torch.device,
) -> Whitening:
    """Whiten, then project, all vectors of the store in place; returns the whitening, on the CPU.

    Products are computed on `device`; the store's vectors stay on the CPU.

    A grown model passes the whitening that it was `fitted` with, on one of the workers. Otherwise
    the whitening is estimated from a sample of the patches of all workers.
    Raises UserError on every worker if the sample does not vary.
    """
    width, _ = _widths(store, group)
    whitening = broadcast_whitening(fitted, width, group)
    if whitening is None:
        ids, _ = store.points(0)
        chunks = (
            _gather_vectors(store, ids, chunk, width, group).to(device)
            for chunk in torch.split(sample_ids(ids, group), _CHUNK)
        )
        # Computed on rank 0 only: another processor could round differently.
        own = Whitening.of(chunks, shrinkage).to("cpu") if group.rank == 0 else None
        for _ in chunks:
            pass  # the other ranks take part in gathering the vectors
        whitening = broadcast_whitening(own, width, group)
    assert whitening
    on_device = whitening.to(device)

    def transform(vectors: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        vectors = vectors.to(device)
        # Vectors with negative ids are the bank of a grown model, which is whitened already.
        vectors = on_device(vectors) if ids[0] >= 0 else vectors
        return vectors.cpu(), project(vectors).cpu()

    store.transform(transform)
    return whitening


def _widths(store: PatchStore, group: Group) -> tuple[int, int]:
    """Dimensions (d, p) of vectors and projections, also on ranks whose store is empty."""
    widths = torch.stack(group.all_gather(torch.tensor([store.width])))
    width, projected_width = widths.flatten(0, 1).amax(dim=0).tolist()
    return width, projected_width


def _gather_vectors(
    store: PatchStore, ids: Tensor, picks: Tensor, width: int, group: Group
) -> Tensor:
    """The vectors (k, width) of picked ids (k,), in their order, from the ranks that hold them."""
    own = torch.nonzero(torch.isin(ids, picks)).flatten()
    all_ids = torch.cat(group.all_gather(ids[own]))
    vectors = torch.cat(group.all_gather(store.vectors(own, width)))
    order = torch.argsort(all_ids)
    return vectors[order[torch.searchsorted(all_ids[order], picks)]].contiguous()


def _saved_picks(group: Group, checkpoint: Checkpoint) -> Coreset | None:
    """The picks that an earlier attempt saved, as rank 0 reads them; None if there are none."""
    ids, squared, rounds = (checkpoint.read() if group.rank == 0 else None) or ([], [], 0)
    ids, rounds_ = torch.tensor(ids, dtype=torch.int64), torch.tensor([rounds])
    all_ids = torch.cat(group.all_gather(ids)).tolist()
    all_squared = torch.cat(group.all_gather(torch.tensor(squared))).tolist()
    if not all_ids:
        return None
    return Coreset(all_ids, all_squared, rounds=int(group.all_reduce(rounds_, "max")))
