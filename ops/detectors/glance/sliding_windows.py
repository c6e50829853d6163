"""Many windows of one picture hidden in turn, at the cost of what each of them changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ops.detectors.glance.partial_convolution import Partial, Seen, Walk, slide


class Region(NamedTuple):
    """The cells that hiding a window may change, for each of n windows; elsewhere `whole` holds.

    Regions are of one size and lie inside the picture; those of windows at its edge begin farther
    in, and so hold some cells that are as in `whole`.
    """

    whole: Tensor
    """(h * w, C): nothing hidden."""
    size: tuple[int, int]
    """Height and width of the whole map."""
    top: Tensor
    """(n,): the first row of each region."""
    left: Tensor
    """(n,): the first column."""
    features: Tensor
    """(n, a, b, C), 0 where nothing was seen."""
    mask: Tensor
    """(n, a, b, 1)."""

    def crop(self, top: Tensor, left: Tensor, height: int, width: int, beyond: float) -> Seen:
        """A part of each window's map, (n, C, height, width), not seen `beyond` the picture."""
        rows = top[:, None, None] + torch.arange(height, device=top.device)[None, :, None]
        columns = left[:, None, None] + torch.arange(width, device=top.device)[None, None, :]
        row, column = rows - self.top[:, None, None], columns - self.left[:, None, None]
        count, a, b, _ = self.features.shape
        number = torch.arange(count, device=top.device)[:, None, None]
        # One place for all that lies beyond, then the whole map, then the regions.
        inside = (rows >= 0) & (rows < self.size[0]) & (columns >= 0) & (columns < self.size[1])
        index = torch.where(inside, 1 + rows * self.size[1] + columns, 0)
        own = (row >= 0) & (row < a) & (column >= 0) & (column < b)
        index = torch.where(own, 1 + len(self.whole) + (number * a + row) * b + column, index)
        found = []
        for outside, whole, parts in (
            (beyond, self.whole, self.features),
            (0.0, self.whole.new_ones(len(self.whole), 1), self.mask),
        ):
            depth = parts.shape[-1]
            cells = [whole.new_full((1, depth), outside), whole, parts.reshape(-1, depth)]
            taken = torch.cat(cells).index_select(0, index.flatten())
            found.append(taken.view(count, height, width, depth).permute(0, 3, 1, 2))
        return Seen(*found)

    def mean(self) -> Tensor:
        """Over what is seen of each window's map (n, C): the whole's sum, with its changes."""
        _, a, b, _ = self.features.shape
        rows = self.top[:, None, None] + torch.arange(a, device=self.top.device)[None, :, None]
        columns = self.left[:, None, None] + torch.arange(b, device=self.top.device)[None, None, :]
        before = self.whole.index_select(0, (rows * self.size[1] + columns).flatten())
        change = (self.features - before.view_as(self.features)).sum(dim=(1, 2))
        count = len(self.whole) - a * b + self.mask.sum(dim=(1, 2))
        return (self.whole.sum(dim=0) + change) / count.clamp(min=1)


class Windows(Walk):
    """What `Partial` gives for pictures that hide one window each, computed where they differ.

    Equal to it up to rounding: a cell that cannot see the window is as in the whole picture, as
    nothing in the network looks farther than its kernels do.
    """

    def __init__(self, network: fx.GraphModule, whole: dict[str, Seen]) -> None:
        """`whole` holds the maps of the picture (1, C, h, w), nothing hidden."""
        super().__init__(network)
        self._maps = whole
        self._whole = Seen(torch.empty(0), torch.empty(0))

    def run_node(self, n: fx.Node) -> Any:
        """As there, with the whole map of this node at hand."""
        if n.name in self._maps:
            self._whole = self._maps[n.name]
        return super().run_node(n)

    def hidden(self, top: Tensor, left: Tensor, patch: int) -> Region:
        """The windows themselves, of which nothing is seen."""
        picture = next(iter(self._maps.values())).features
        features = picture.new_zeros(len(top), patch, patch, picture.shape[1])
        return self._region(picture, top, left, features, features[..., :1])

    def slide(self, module: nn.Conv2d | nn.MaxPool2d, seen: Region) -> Region:
        """On the region that sees the one before."""
        height, width = self._whole.features.shape[2:]
        kernel, stride, padding, spread = (
            _pair(getattr(module, name))
            for name in ("kernel_size", "stride", "padding", "dilation")
        )
        reach = [spread[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
        if max(*reach, *stride) == 1 and not any(padding):
            return self._next(seen.top, seen.left, slide(module, _seen(seen), 0))
        _, a, b, _ = seen.features.shape
        top, rows = _reached(seen.top, a, height, reach[0], stride[0], padding[0])
        left, columns = _reached(seen.left, b, width, reach[1], stride[1], padding[1])
        beyond = 0.0 if isinstance(module, nn.Conv2d) else -torch.inf
        needed = seen.crop(
            top * stride[0] - padding[0],
            left * stride[1] - padding[1],
            (rows - 1) * stride[0] + reach[0],
            (columns - 1) * stride[1] + reach[1],
            beyond,
        )
        return self._next(top, left, slide(module, needed, 0))

    def each(self, function: Callable[[Tensor], Tensor], seen: Region) -> Region:
        """On the same region."""
        features, mask = _seen(seen)
        return self._next(seen.top, seen.left, Seen(function(features) * mask, mask))

    def add(self, one: Region, other: Region) -> Region:
        """On the larger region."""
        a, b = _alike([one, other])
        top, left = _place([one, other])
        mask = a.mask.maximum(b.mask)
        return self._next(top, left, Seen(a.features + b.features, mask))

    def join(self, parts: Sequence[Region]) -> Region:
        """On the largest region."""
        alike = _alike(parts)
        top, left = _place(parts)
        mask = torch.stack([part.mask for part in alike]).amax(dim=0)
        return self._next(top, left, Seen(torch.cat([p.features for p in alike], dim=1), mask))

    def _next(self, top: Tensor, left: Tensor, seen: Seen) -> Region:
        features, mask = (part.permute(0, 2, 3, 1) for part in seen)
        return self._region(self._whole.features, top, left, features, mask)

    @staticmethod
    def _region(whole: Tensor, top: Tensor, left: Tensor, features: Tensor, mask: Tensor) -> Region:
        cells = whole[0].permute(1, 2, 0).flatten(0, 1)
        return Region(cells, (whole.shape[2], whole.shape[3]), top, left, features, mask)


def embedded(
    network: fx.GraphModule, whole: Partial, top: Tensor, left: Tensor, patch: int
) -> list[Tensor]:
    """Means (n, C) over what is seen of each output of the network, one window hidden at a time.

    `whole` has met the picture with nothing hidden; `top` and `left` (n,) are in pixels.
    """
    windows = Windows(network, whole.maps)
    out: dict[str, Region] = windows.run(windows.hidden(top, left, patch))
    return [region.mean() for region in out.values()]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _reached(
    start: Tensor, length: int, size: int, reach: int, stride: int, padding: int
) -> tuple[Tensor, int]:
    """The cells, of `size` along an axis, whose kernels meet a run of cells: first and number.

    Windows have the same number whatever their phase, so it is the largest.
    """
    count = min((length + reach - 2) // stride + 1, size)
    first = -((reach - 1 - padding - start) // stride)  # rounded up
    return first.clamp(0, size - count), count


def _seen(region: Region) -> Seen:
    return Seen(region.features.permute(0, 3, 1, 2), region.mask.permute(0, 3, 1, 2))


def _largest(parts: Sequence[Region]) -> Region:
    """The region that holds the others: branches that meet saw the same cells change."""
    return max(parts, key=lambda part: part.mask[0].numel())


def _place(parts: Sequence[Region]) -> tuple[Tensor, Tensor]:
    part = _largest(parts)
    return part.top, part.left


def _alike(parts: Sequence[Region]) -> list[Seen]:
    """All parts on the largest region."""
    largest = _largest(parts)
    _, a, b, _ = largest.mask.shape
    return [
        _seen(part) if part is largest else part.crop(largest.top, largest.left, a, b, 0.0)
        for part in parts
    ]
