"""What PatchCore's bank costs: memory of its fit and of scoring, size of the model, and time."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ops.detectors.fit_cost import ResourceEstimate, TimingProbe
from ops.distributed import Alone
from ops.search import axes_search, device_search
from ops.search.coreset import greedy
from ops.search.patch_store import bytes_per_vector

#: Points, picks and dimensions of the coreset that is timed before a fit.
_PROBE = 100_000, 1_000, 128


class CoresetSize(NamedTuple):
    """The size of a fit that chooses a coreset."""

    patches: int
    """Of the images of all workers."""
    kept: int
    """Patches that the bank keeps."""
    width: int
    """Length of a vector."""
    projected_width: int
    """Length of its projection."""
    workers: int


def estimate(size: CoresetSize, fit_memory: int, whitened: bool) -> ResourceEstimate:
    """All patches of a worker's images, or `fit_memory` bytes of them; then the bank."""
    share = -(-size.patches // size.workers) * bytes_per_vector(size.width, size.projected_width)
    stored = min(share, fit_memory) if fit_memory else share
    bank = size.kept * size.width * 4
    square = size.width * (size.width + 1) if whitened else 0
    bounded = "" if whitened else "bound it with --patchcore.fit_memory, or "
    return ResourceEstimate(
        vectors=size.patches,
        kept=size.kept,
        # The covariance, its eigenvectors and the workspace of the solver, in float64.
        fit_bytes=stored + 2 * bank + square * 8 * 6,
        score_bytes=3 * bank + axes_search.SCRATCH + 4 * square,
        model_bytes=bank + 4 * square,
        # Patches stay in the node; where a GPU has too little memory, so does the greedy.
        fit_host_bytes=stored,
        gpu_scratch=device_search.SCRATCH,
        remedy=f"{bounded}lower --patchcore.max_bank_size or --input.size",
    )


def timing_probe(size: CoresetSize, device: torch.device) -> TimingProbe:
    """A small coreset without whitening; the greedy's time grows with points times picks."""
    n, k, width = _PROBE
    # Like features, points vary along few directions; else all distances would be similar.
    fall = torch.arange(1, width + 1) ** -0.5
    points = torch.randn(n, width, generator=torch.Generator().manual_seed(0)) * fall
    points = points.to(device)
    times = size.patches * size.kept / (n * k) / size.workers
    return TimingProbe(lambda: greedy(points, torch.arange(n), k, Alone()), times)
