"""A normalizing flow on one map at several scales, which its couplings bring together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.features.backbone import LayerShape
from ops.flows.vector_flow import seeded, soft_clamp

#: Of the first blocks and the last; of CS-Flow's code.
_KERNELS = (3, 5)


class ScaleFlow(nn.Module):
    """A flow of fixed permutations and two-sided couplings (Rudolph et al., WACV 2022).

    Maps have the same channels at every scale, the finest first. Forward gives an image's -log p
    for each element, without the constant: what training lowers. Permutations are seeded with the
    number of their block, weights are drawn from `seed`.
    """

    def __init__(self, shapes: Sequence[LayerShape], blocks: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.shapes: Tensor
        self.register_buffer("shapes", torch.tensor(shapes))
        channels, scales = shapes[0][0], len(shapes)
        self.elements = sum(math.prod(shape) for shape in shapes)
        self._blocks = nn.ModuleList()
        with seeded(seed):
            for block in range(blocks):
                kernel = _KERNELS[block == blocks - 1]
                self._blocks.append(_Block(channels, scales, hidden, kernel, block))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Scales (n, C, h, w) -> (n,)."""
        latents, volume = self.latents(maps)
        squares = sum(z.square().sum(dim=(1, 2, 3), dtype=torch.float64) for z in latents)
        return torch.as_tensor((squares / 2 - volume) / self.elements)

    def latents(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Scales (n, C, h, w) -> what should be normal, log volume of all together (n,)."""
        total = maps[0].new_zeros(len(maps[0]))
        for block in self._blocks:
            maps, volume = block(maps)
            total = total + volume
        return maps, total

    def inverse(self, latents: list[Tensor]) -> list[Tensor]:
        """What `latents` gives -> the maps."""
        for block in reversed(self._blocks):
            assert isinstance(block, _Block)
            latents = block.inverse(latents)
        return latents

    @staticmethod
    def parameters_of(shapes: Sequence[LayerShape], blocks: int, hidden: int) -> int:
        """How many weights it has, built without memory for them."""
        channels, scales = shapes[0][0], len(shapes)
        with torch.device("meta"):
            built = [
                _Block(channels, scales, hidden, _KERNELS[block == blocks - 1], block)
                for block in range(blocks)
            ]
        return sum(p.numel() for block in built for p in block.parameters())


class _Block(nn.Module):
    """Permutations, then the left halves moved by the right ones, then these by the new left."""

    def __init__(self, channels: int, scales: int, hidden: int, kernel: int, number: int) -> None:
        super().__init__()
        draws = np.random.RandomState(number)
        orders = np.stack([draws.permutation(channels) for _ in range(scales)])
        self.orders: Tensor
        self.register_buffer("orders", torch.tensor(orders))
        self._left = channels // 2
        right = channels - self._left
        self._of_right = CrossConvolutions(right, hidden, 2 * self._left, scales, kernel)
        self._of_left = CrossConvolutions(self._left, hidden, 2 * right, scales, kernel)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The scales moved, and the log of the volume change (n,)."""
        left, right = self._halves(
            [m.index_select(1, order) for m, order in zip(maps, self.orders, strict=True)]
        )
        left, one = _moved(left, self._of_right(right))
        right, other = _moved(right, self._of_left(left))
        return [torch.cat(pair, dim=1) for pair in zip(left, right, strict=True)], one + other

    def inverse(self, maps: list[Tensor]) -> list[Tensor]:
        """Undo `forward`."""
        left, right = self._halves(maps)
        right = _moved_back(right, self._of_left(left))
        left = _moved_back(left, self._of_right(right))
        whole = [torch.cat(pair, dim=1) for pair in zip(left, right, strict=True)]
        return [
            m.index_select(1, order.argsort()) for m, order in zip(whole, self.orders, strict=True)
        ]

    def _halves(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [m[:, : self._left] for m in maps], [m[:, self._left :] for m in maps]


def _scaled(predicted: Tensor) -> tuple[Tensor, Tensor]:
    """Log-scale, clamped as DifferNet does, and shift."""
    scale, shift = predicted.chunk(2, dim=1)
    return 3 * soft_clamp(scale), shift


def _moved(maps: list[Tensor], predicted: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    moved, volume = [], maps[0].new_zeros(len(maps[0]))
    for layer, values in zip(maps, predicted, strict=True):
        scale, shift = _scaled(values)
        moved.append(layer * scale.exp() + shift)
        volume = volume + scale.sum(dim=(1, 2, 3))
    return moved, volume


def _moved_back(maps: list[Tensor], predicted: list[Tensor]) -> list[Tensor]:
    parts = [(layer, *_scaled(values)) for layer, values in zip(maps, predicted, strict=True)]
    return [(layer - shift) * (-scale).exp() for layer, scale, shift in parts]


class CrossConvolutions(nn.Module):
    """Two convolutions a scale, the second also to the next finer and the next coarser scale.

    What goes to a finer scale is up-sampled bilinearly, what goes to a coarser one is convolved
    with stride 2; where sizes do not halve exactly it is resized, which is our choice. A factor a
    scale that begins as 0 makes an untrained coupling change nothing.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, scales: int, kernel: int) -> None:
        super().__init__()

        def convolution(before: int, after: int, stride: int = 1) -> nn.Module:
            return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2)

        self._first = nn.ModuleList(convolution(inputs, hidden) for _ in range(scales))
        self._second = nn.ModuleList(convolution(hidden, outputs) for _ in range(scales))
        self._up = nn.ModuleList(convolution(hidden, outputs) for _ in range(scales - 1))
        self._down = nn.ModuleList(convolution(hidden, outputs, 2) for _ in range(scales - 1))
        self.factors = nn.Parameter(torch.zeros(scales))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Scales (n, inputs, h, w), the finest first -> (n, outputs, h, w)."""
        hidden = [
            F.leaky_relu(first(layer), 0.1) for first, layer in zip(self._first, maps, strict=True)
        ]
        out = [second(layer) for second, layer in zip(self._second, hidden, strict=True)]
        for fine, (up, down) in enumerate(zip(self._up, self._down, strict=True)):
            out[fine] = out[fine] + _resized(up(hidden[fine + 1]), maps[fine])
            out[fine + 1] = out[fine + 1] + _resized(down(hidden[fine]), maps[fine + 1])
        return [layer * factor for layer, factor in zip(out, self.factors, strict=True)]


def _resized(layer: Tensor, like: Tensor) -> Tensor:
    if layer.shape[2:] == like.shape[2:]:
        return layer
    return F.interpolate(layer, size=like.shape[2:], mode="bilinear", align_corners=False)
