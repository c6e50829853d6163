"""Hides many windows of one image in turn, and recomputes only what each of them changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ops.detectors.glance.partial_convolution import (
    MaskedFeatures,
    MaskedInterpreter,
    PartialNetwork,
    partial_module,
)


class ChangedRegions(NamedTuple):
    """The positions of a feature map that hiding a window may change, for each of n windows.

    All other positions are as in `unmasked`. The regions have one size and lie inside the map;
    those of windows at the border are moved inwards and so hold some unchanged positions.
    """

    unmasked: Tensor
    """(h * w, C): the map with nothing hidden."""
    size: tuple[int, int]
    """Height and width (h, w) of the map."""
    top: Tensor
    """(n,): the first row of each region."""
    left: Tensor
    """(n,): the first column."""
    features: Tensor
    """(n, a, b, C), 0 where hidden."""
    mask: Tensor
    """(n, a, b, 1)."""

    def crop(
        self, top: Tensor, left: Tensor, height: int, width: int, fill: float
    ) -> MaskedFeatures:
        """A crop (n, C, height, width) of each window's map; `fill`, hidden, outside the map."""
        rows = top[:, None, None] + torch.arange(height, device=top.device)[None, :, None]
        columns = left[:, None, None] + torch.arange(width, device=top.device)[None, None, :]
        row, column = rows - self.top[:, None, None], columns - self.left[:, None, None]
        count, a, b, _ = self.features.shape
        number = torch.arange(count, device=top.device)[:, None, None]
        # Index 0 is outside the map; then follow the unmasked map and all regions.
        inside = (rows >= 0) & (rows < self.size[0]) & (columns >= 0) & (columns < self.size[1])
        index = torch.where(inside, 1 + rows * self.size[1] + columns, 0)
        changed = (row >= 0) & (row < a) & (column >= 0) & (column < b)
        index = torch.where(
            changed, 1 + len(self.unmasked) + (number * a + row) * b + column, index
        )
        crops = []
        for outside, unmasked, regions in (
            (fill, self.unmasked, self.features),
            (0.0, self.unmasked.new_ones(len(self.unmasked), 1), self.mask),
        ):
            depth = regions.shape[-1]
            values = [unmasked.new_full((1, depth), outside), unmasked, regions.reshape(-1, depth)]
            crop = torch.cat(values).index_select(0, index.flatten())
            crops.append(crop.view(count, height, width, depth).permute(0, 3, 1, 2))
        return MaskedFeatures(*crops)

    def mean(self) -> Tensor:
        """The mean over visible positions of each window's map (n, C).

        The sum of the unmasked map is corrected by the changes in the region.
        """
        _, a, b, _ = self.features.shape
        rows = self.top[:, None, None] + torch.arange(a, device=self.top.device)[None, :, None]
        columns = self.left[:, None, None] + torch.arange(b, device=self.top.device)[None, None, :]
        before = self.unmasked.index_select(0, (rows * self.size[1] + columns).flatten())
        change = (self.features - before.view_as(self.features)).sum(dim=(1, 2))
        count = len(self.unmasked) - a * b + self.mask.sum(dim=(1, 2))
        return (self.unmasked.sum(dim=0) + change) / count.clamp(min=1)


class SlidingWindows(MaskedInterpreter):
    """`PartialNetwork` for one image with one window hidden at a time, limited to changed regions.

    Equal to it up to rounding: every layer has a bounded receptive field, so a position whose field
    does not meet the window is as in the unmasked image.
    """

    def __init__(self, network: fx.GraphModule, maps: dict[str, MaskedFeatures]) -> None:
        """`maps` holds every node's map (1, C, h, w) of the image with nothing hidden."""
        super().__init__(network)
        self._maps = maps
        self._unmasked = MaskedFeatures(torch.empty(0), torch.empty(0))

    def run_node(self, n: fx.Node) -> Any:
        """Run a node while `_unmasked` is its unmasked map."""
        if n.name in self._maps:
            self._unmasked = self._maps[n.name]
        return super().run_node(n)

    def hidden(self, top: Tensor, left: Tensor, patch: int) -> ChangedRegions:
        """The input: the image with one square of `patch` pixels hidden for each corner (n,)."""
        image = next(iter(self._maps.values())).features
        features = image.new_zeros(len(top), patch, patch, image.shape[1])
        return self._regions(image, top, left, features, features[..., :1])

    def windowed(self, module: nn.Conv2d | nn.MaxPool2d, inputs: ChangedRegions) -> ChangedRegions:
        """Apply a module to the positions whose kernels meet the regions."""
        height, width = self._unmasked.features.shape[2:]
        kernel, stride, padding, dilation = (
            _pair(getattr(module, name))
            for name in ("kernel_size", "stride", "padding", "dilation")
        )
        extent = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
        if max(*extent, *stride) == 1 and not any(padding):
            outputs = partial_module(module, _channels_first(inputs), 0)
            return self._next(inputs.top, inputs.left, outputs)
        _, a, b, _ = inputs.features.shape
        top, rows = _affected(inputs.top, a, height, extent[0], stride[0], padding[0])
        left, columns = _affected(inputs.left, b, width, extent[1], stride[1], padding[1])
        crop = inputs.crop(
            top * stride[0] - padding[0],
            left * stride[1] - padding[1],
            (rows - 1) * stride[0] + extent[0],
            (columns - 1) * stride[1] + extent[1],
            0.0 if isinstance(module, nn.Conv2d) else -torch.inf,
        )
        return self._next(top, left, partial_module(module, crop, 0))

    def pointwise(
        self, function: Callable[[Tensor], Tensor], inputs: ChangedRegions
    ) -> ChangedRegions:
        """Apply a function to the regions."""
        features, mask = _channels_first(inputs)
        return self._next(inputs.top, inputs.left, MaskedFeatures(function(features) * mask, mask))

    def add(self, one: ChangedRegions, other: ChangedRegions) -> ChangedRegions:
        """Add branches on the larger of their regions."""
        largest = _largest([one, other])
        a, b = _cropped_to(largest, [one, other])
        mask = a.mask.maximum(b.mask)
        return self._next(largest.top, largest.left, MaskedFeatures(a.features + b.features, mask))

    def concatenate(self, branches: Sequence[ChangedRegions]) -> ChangedRegions:
        """Concatenate branches on the largest of their regions."""
        largest = _largest(branches)
        crops = _cropped_to(largest, branches)
        mask = torch.stack([crop.mask for crop in crops]).amax(dim=0)
        features = torch.cat([crop.features for crop in crops], dim=1)
        return self._next(largest.top, largest.left, MaskedFeatures(features, mask))

    def _next(self, top: Tensor, left: Tensor, outputs: MaskedFeatures) -> ChangedRegions:
        features, mask = (part.permute(0, 2, 3, 1) for part in outputs)
        return self._regions(self._unmasked.features, top, left, features, mask)

    @staticmethod
    def _regions(
        unmasked: Tensor, top: Tensor, left: Tensor, features: Tensor, mask: Tensor
    ) -> ChangedRegions:
        positions = unmasked[0].permute(1, 2, 0).flatten(0, 1)
        size = (unmasked.shape[2], unmasked.shape[3])
        return ChangedRegions(positions, size, top, left, features, mask)


def masked_window_means(
    network: fx.GraphModule, unmasked: PartialNetwork, top: Tensor, left: Tensor, patch: int
) -> list[Tensor]:
    """Means (n, C) over visible positions of each output of a network, one window hidden at a time.

    `unmasked` has run on the image with nothing hidden; `top` and `left` (n,) are in pixels.
    """
    windows = SlidingWindows(network, unmasked.maps)
    out: dict[str, ChangedRegions] = windows.run(windows.hidden(top, left, patch))
    return [regions.mean() for regions in out.values()]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _affected(
    start: Tensor, length: int, size: int, extent: int, stride: int, padding: int
) -> tuple[Tensor, int]:
    """Outputs along an axis of `size` whose kernels meet inputs `start` to `start + length`.

    Returns the first output of each window (n,) and their number, which is the largest of all
    windows.
    """
    count = min((length + extent - 2) // stride + 1, size)
    first = -((extent - 1 - padding - start) // stride)  # rounded up
    return first.clamp(0, size - count), count


def _channels_first(regions: ChangedRegions) -> MaskedFeatures:
    return MaskedFeatures(regions.features.permute(0, 3, 1, 2), regions.mask.permute(0, 3, 1, 2))


def _largest(branches: Sequence[ChangedRegions]) -> ChangedRegions:
    """The largest regions, which contain those of the other branches."""
    return max(branches, key=lambda branch: branch.mask[0].numel())


def _cropped_to(
    largest: ChangedRegions, branches: Sequence[ChangedRegions]
) -> list[MaskedFeatures]:
    """All branches on the largest regions."""
    _, a, b, _ = largest.mask.shape
    return [
        _channels_first(branch)
        if branch is largest
        else branch.crop(largest.top, largest.left, a, b, 0.0)
        for branch in branches
    ]
