"""The patch vectors that a worker of a fit keeps: all of them, or what fits into its memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ops.distributed import Alone
from ops.errors import UserError
from ops.search.coreset import greedy

#: A full buffer is thinned to a half. Fewer vectors would cover worse, more would take longer.
_THINNING = 2


class PatchStore:
    """Vectors (n, d), their projections (n, p) and their unique ids (n,).

    `covering_radius` is the largest distance, in the projection, of an added vector to the nearest
    one that is kept.
    """

    covering_radius = 0.0

    def __init__(self) -> None:
        self._vectors: list[Tensor] = []
        self._projected: list[Tensor] = []
        self._ids: list[Tensor] = []

    def add(self, vectors: Tensor, projected: Tensor, ids: Tensor) -> None:
        """Add vectors, whose ids ascend within the batch."""
        self._vectors.append(vectors)
        self._projected.append(projected)
        self._ids.append(ids)

    def close(self) -> None:
        """End the adding: sort by ids."""
        order = sorted(
            (i for i in range(len(self._ids)) if len(self._ids[i])),
            key=lambda i: int(self._ids[i][0]),
        )
        self._vectors = [self._vectors[i] for i in order]
        self._projected = [self._projected[i] for i in order]
        self._ids = [self._ids[i] for i in order]

    def transform(self, function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        """Replace vectors and projections, batch by batch, by `function(vectors, ids)`."""
        for i, (batch, ids) in enumerate(zip(self._vectors, self._ids, strict=True)):
            self._vectors[i], self._projected[i] = function(batch, ids)

    @property
    def width(self) -> tuple[int, int]:
        """Dimensions (d, p) of vectors and projections; (0, 0) if nothing was added."""
        if not self._vectors:
            return 0, 0
        return self._vectors[0].shape[1], self._projected[0].shape[1]

    def points(self, width: int) -> tuple[Tensor, Tensor]:
        """Ids (n,), ascending, and projections (n, p), which are (0, width) if there are none."""
        if not self._ids:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, width)
        return torch.cat(self._ids), torch.cat(self._projected)

    def vectors(self, rows: Tensor, width: int) -> Tensor:
        """The vectors (m, d) of some rows of `points`, given in ascending order."""
        out = torch.empty(len(rows), width)
        start = 0
        for batch in self._vectors:
            ends = torch.tensor([start, start + len(batch)])
            first, last = torch.searchsorted(rows, ends).tolist()
            torch.index_select(batch, 0, rows[first:last] - start, out=out[first:last])
            start += len(batch)
        return out


class BoundedPatchStore(PatchStore):
    """As many vectors as fit into `memory` bytes, chosen to cover all that were added.

    Vectors stay on the CPU; `device` computes distances of their projections, with the same picks.
    One half of the memory is a buffer. When it is full, the greedy coreset thins it. The gain of a
    pick is its squared distance to the picks before it. The other half of the memory holds the
    picks with the largest gains, over all buffers so far. Gains decrease from pick to pick, so of
    each buffer the first picks are kept, and their covering radius is the root of the gain of the
    first pick dropped. All buffers end with about the same radius, however different they are.
    """

    def __init__(self, memory: int, device: torch.device = torch.device("cpu")) -> None:
        super().__init__()
        self._memory, self._device = memory, device
        self._buffered = 0
        self._picks: list[Tensor] = []  # vectors, projections, ids, gains

    def add(self, vectors: Tensor, projected: Tensor, ids: Tensor) -> None:
        """Add vectors. Raises UserError if the memory does not hold two such batches."""
        room = self._memory // (2 * bytes_per_vector(vectors.shape[1], projected.shape[1]))
        if room < len(ids):
            least = 2 * len(ids) * bytes_per_vector(vectors.shape[1], projected.shape[1])
            raise UserError(
                f"{self._memory} bytes do not hold the patches of two images; "
                f"raise fit_memory to {least} at least"
            )
        if self._buffered + len(ids) > room:
            self._thin_buffer(room)
        self._buffered += len(ids)
        super().add(vectors, projected, ids)

    def _thin_buffer(self, room: int) -> None:
        """Move a coreset of the buffer to the picks, of which at most `room` are kept."""
        super().close()
        ids, projected = self.points(self.width[1])
        full = self._picks and len(self._picks[3]) >= room
        least = float(self._picks[3].min()) if full else 0.0
        k = max(1, len(ids) // _THINNING)
        coreset = greedy(projected.to(self._device), ids, k, Alone(), stop_below=least)
        self.covering_radius = max(self.covering_radius, coreset.radius)
        rows, order = torch.searchsorted(ids, torch.tensor(coreset.ids)).sort()
        new = [self.vectors(rows, self.width[0]), projected[rows], ids[rows]]
        new.append(torch.tensor(coreset.squared)[order])
        self._vectors, self._projected, self._ids, self._buffered = [], [], [], 0
        del projected
        if self._picks:
            self._merge_picks(new, room)
        else:
            self._picks = new

    def _merge_picks(self, new: list[Tensor], room: int) -> None:
        """Of old and new picks together, keep the `room` ones with the largest gains."""
        gains = torch.cat([self._picks[3], new[3]])
        order = torch.sort(gains, descending=True).indices
        if len(order) > room:
            self.covering_radius = max(self.covering_radius, math.sqrt(float(gains[order[room]])))
        keep = order[:room].sort().values
        old = int(torch.searchsorted(keep, len(self._picks[3])))
        for i, after in enumerate(new):  # one tensor at a time, so that the copies take less memory
            before, self._picks[i] = self._picks[i], after[:0]
            merged = torch.empty(len(keep), *after.shape[1:], dtype=after.dtype)
            torch.index_select(before, 0, keep[:old], out=merged[:old])
            torch.index_select(after, 0, keep[old:] - len(before), out=merged[old:])
            self._picks[i] = merged

    def close(self) -> None:
        """End the adding. A buffer that was never full is kept whole, without thinning."""
        if self._picks:
            self._thin_buffer(self._memory // (2 * bytes_per_vector(*self.width)))
            order = self._picks[2].argsort()
            self._vectors, self._projected, self._ids = ([part[order]] for part in self._picks[:3])
            self._picks = []
        super().close()


def bytes_per_vector(width: int, projection: int) -> int:
    """Bytes that a vector (d = width, p = projection) takes in a store while the greedy runs."""
    # The vector; its projection as a batch, concatenated, and as codes; ids and bounds. Times 7 / 4
    # for the picks of a buffer, which are copied before the buffer is freed.
    return (4 * width + 9 * projection + 64) * 7 // 4
