"""What a worker keeps of the vectors it is given: all of them, or what fits into its memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ops.distributed import Alone
from ops.errors import UserError
from ops.search.coreset import greedy

#: One in so many vectors of a buffer is kept at most: fewer cover worse, more cost more time.
_ONE_IN = 2


class Shard:
    """Vectors (n, d), their projections (n, p), and ids, which are unique.

    `cover` says how far, in the projection, a vector added may lie from the nearest one kept.
    """

    cover = 0.0

    def __init__(self) -> None:
        self._vectors: list[Tensor] = []
        self._projected: list[Tensor] = []
        self._ids: list[Tensor] = []

    def add(self, vectors: Tensor, projected: Tensor, ids: Tensor) -> None:
        """Take in vectors, in ascending order of their ids."""
        self._vectors.append(vectors)
        self._projected.append(projected)
        self._ids.append(ids)

    def close(self) -> None:
        """Everything has been added: put it into the order of ids."""
        order = sorted(
            (i for i in range(len(self._ids)) if len(self._ids[i])),
            key=lambda i: int(self._ids[i][0]),
        )
        self._vectors = [self._vectors[i] for i in order]
        self._projected = [self._projected[i] for i in order]
        self._ids = [self._ids[i] for i in order]

    def change(self, to: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        """Put other vectors and projections in the place of vectors and ids, part by part."""
        for i, (part, ids) in enumerate(zip(self._vectors, self._ids, strict=True)):
            self._vectors[i], self._projected[i] = to(part, ids)

    @property
    def width(self) -> tuple[int, int]:
        """Dimensions (d, p); zeros before anything was added."""
        if not self._vectors:
            return 0, 0
        return self._vectors[0].shape[1], self._projected[0].shape[1]

    def points(self, width: int) -> tuple[Tensor, Tensor]:
        """Ids (n,), ascending, and projections (n, p); (0, width) if there are none."""
        if not self._ids:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, width)
        return torch.cat(self._ids), torch.cat(self._projected)

    def vectors(self, rows: Tensor, width: int) -> Tensor:
        """The vectors (m, d) of some rows of `points`, which ascend."""
        out = torch.empty(len(rows), width)
        start = 0
        for part in self._vectors:
            ends = torch.tensor([start, start + len(part)])
            first, last = torch.searchsorted(rows, ends).tolist()
            torch.index_select(part, 0, rows[first:last] - start, out=out[first:last])
            start += len(part)
        return out


class BoundedShard(Shard):
    """As many vectors as fit into `memory` bytes, chosen so that they cover all that were added.

    One half of the memory is a buffer. When it is full, the greedy thins it, and knows of each
    pick its gain: its squared distance to those before it. The other half holds the picks with the
    largest gains of all buffers. As gains fall from pick to pick, that keeps of each buffer the
    first picks, whose covering radius is the gain of the first one let go: all buffers end with
    about the same radius, however different they are.
    """

    def __init__(self, memory: int) -> None:
        super().__init__()
        self._memory = memory
        self._waiting = 0
        self._kept: list[Tensor] = []  # vectors, projections, ids, gains

    def add(self, vectors: Tensor, projected: Tensor, ids: Tensor) -> None:
        """Take in vectors. Raises UserError if the memory does not hold two such batches."""
        room = self._memory // (2 * bytes_each(vectors.shape[1], projected.shape[1]))
        if room < len(ids):
            least = 2 * len(ids) * bytes_each(vectors.shape[1], projected.shape[1])
            raise UserError(
                f"{self._memory} bytes do not hold the patches of two images; "
                f"raise the memory of the method's settings to {least} at least"
            )
        if self._waiting + len(ids) > room:
            self._thin(room)
        self._waiting += len(ids)
        super().add(vectors, projected, ids)

    def _thin(self, room: int) -> None:
        super().close()
        ids, projected = self.points(self.width[1])
        full = self._kept and len(self._kept[3]) >= room
        least = float(self._kept[3].min()) if full else 0.0
        found = greedy(projected, ids, max(1, len(ids) // _ONE_IN), Alone(), enough=least)
        self.cover = max(self.cover, found.radius)
        rows, order = torch.searchsorted(ids, torch.tensor(found.ids)).sort()
        new = [self.vectors(rows, self.width[0]), projected[rows], ids[rows]]
        new.append(torch.tensor(found.squared)[order])
        self._vectors, self._projected, self._ids, self._waiting = [], [], [], 0
        del projected
        if not self._kept:
            self._kept = new
            return
        gains = torch.cat([self._kept[3], new[3]])
        order = torch.sort(gains, descending=True).indices
        if len(order) > room:
            self.cover = max(self.cover, math.sqrt(float(gains[order[room]])))
        stay = order[:room].sort().values
        old = int(torch.searchsorted(stay, len(self._kept[3])))
        for i, after in enumerate(new):  # one after the other, so that each copy is short-lived
            before, self._kept[i] = self._kept[i], after[:0]
            kept = torch.empty(len(stay), *after.shape[1:], dtype=after.dtype)
            torch.index_select(before, 0, stay[:old], out=kept[:old])
            torch.index_select(after, 0, stay[old:] - len(before), out=kept[old:])
            self._kept[i] = kept

    def close(self) -> None:
        """The last buffer is kept whole if there is room for it, and thinned if not."""
        if self._kept:
            self._thin(self._memory // (2 * bytes_each(*self.width)))
            order = self._kept[2].argsort()
            self._vectors, self._projected, self._ids = ([part[order]] for part in self._kept[:3])
            self._kept = []
        super().close()


def bytes_each(width: int, projection: int) -> int:
    """Memory that a vector takes in a shard while the greedy runs, in bytes."""
    # The vector; its projection in a list, in one piece, and as codes; ids and bounds; half of all
    # that once more for what is kept of a buffer before the buffer is let go.
    return (4 * width + 9 * projection + 64) * 7 // 4
