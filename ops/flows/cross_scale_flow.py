"""A normalizing flow on a feature map at several scales, with couplings across the scales."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.features.backbone import LayerShape
from ops.flows.vector_flow import seeded, soft_clamp

#: Kernel sizes of all blocks but the last, and of the last, as in CS-Flow's code.
_KERNELS = (3, 5)


class ScaleFlow(nn.Module):
    """A flow of fixed permutations and two-sided couplings (Rudolph et al., WACV 2022).

    Maps have the same number of channels at every scale, the finest first. `forward` returns the
    training loss of each image: -log p per element, without the constant. The permutation of a
    block is seeded with the block's number; weights are drawn from `seed`.
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
        """Maps (n, C, h, w) of all scales -> losses (n,)."""
        latents, volume = self.latents(maps)
        squares = sum(z.square().sum(dim=(1, 2, 3), dtype=torch.float64) for z in latents)
        return torch.as_tensor((squares / 2 - volume) / self.elements)

    def latents(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Maps (n, C, h, w) -> latents of the same shapes, and log |det J| over all scales (n,)."""
        total = maps[0].new_zeros(len(maps[0]))
        for block in self._blocks:
            maps, volume = block(maps)
            total = total + volume
        return maps, total

    def inverse(self, latents: list[Tensor]) -> list[Tensor]:
        """Latents -> maps, undoing `latents`."""
        for block in reversed(self._blocks):
            assert isinstance(block, _Block)
            latents = block.inverse(latents)
        return latents

    @staticmethod
    def parameter_count(shapes: Sequence[LayerShape], blocks: int, hidden: int) -> int:
        """The number of weights; blocks are built on the meta device, which takes no memory."""
        channels, scales = shapes[0][0], len(shapes)
        with torch.device("meta"):
            built = [
                _Block(channels, scales, hidden, _KERNELS[block == blocks - 1], block)
                for block in range(blocks)
            ]
        return sum(p.numel() for block in built for p in block.parameters())


class _Block(nn.Module):
    """A two-sided affine coupling: permute channels, transform the left half by the right, then
    the right half by the new left.
    """

    def __init__(self, channels: int, scales: int, hidden: int, kernel: int, number: int) -> None:
        super().__init__()
        generator = np.random.RandomState(number)
        orders = np.stack([generator.permutation(channels) for _ in range(scales)])
        self.orders: Tensor
        self.register_buffer("orders", torch.tensor(orders))
        self._left = channels // 2
        right = channels - self._left
        self._of_right = CrossConvolutions(right, hidden, 2 * self._left, scales, kernel)
        self._of_left = CrossConvolutions(self._left, hidden, 2 * right, scales, kernel)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Transformed maps, and log |det J| (n,)."""
        left, right = self._halves(
            [m.index_select(1, order) for m, order in zip(maps, self.orders, strict=True)]
        )
        left, left_volume = _transform(left, self._of_right(right))
        right, right_volume = _transform(right, self._of_left(left))
        joined = [torch.cat(pair, dim=1) for pair in zip(left, right, strict=True)]
        return joined, left_volume + right_volume

    def inverse(self, maps: list[Tensor]) -> list[Tensor]:
        """Undo `forward`."""
        left, right = self._halves(maps)
        right = _invert(right, self._of_left(left))
        left = _invert(left, self._of_right(right))
        joined = [torch.cat(pair, dim=1) for pair in zip(left, right, strict=True)]
        return [
            m.index_select(1, order.argsort()) for m, order in zip(joined, self.orders, strict=True)
        ]

    def _halves(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [m[:, : self._left] for m in maps], [m[:, self._left :] for m in maps]


def _scale_and_shift(predicted: Tensor) -> tuple[Tensor, Tensor]:
    """Log-scale, clamped as in DifferNet, and shift."""
    scale, shift = predicted.chunk(2, dim=1)
    return 3 * soft_clamp(scale), shift


def _transform(maps: list[Tensor], predicted: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The affine transform of each scale, and log |det J| (n,)."""
    transformed, volume = [], maps[0].new_zeros(len(maps[0]))
    for layer, values in zip(maps, predicted, strict=True):
        scale, shift = _scale_and_shift(values)
        transformed.append(layer * scale.exp() + shift)
        volume = volume + scale.sum(dim=(1, 2, 3))
    return transformed, volume


def _invert(maps: list[Tensor], predicted: list[Tensor]) -> list[Tensor]:
    """Undo `_transform`."""
    parts = [
        (layer, *_scale_and_shift(values)) for layer, values in zip(maps, predicted, strict=True)
    ]
    return [(layer - shift) * (-scale).exp() for layer, scale, shift in parts]


class CrossConvolutions(nn.Module):
    """The subnet of CS-Flow: two convolutions per scale, the second also to the adjacent scales.

    Maps are up-sampled bilinearly to the next finer scale and convolved with stride 2 to the next
    coarser one. Where sizes do not halve exactly they are resized, which is our choice. Each scale
    has a trained factor that starts at 0, so that an untrained coupling is the identity.
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
        """Maps (n, inputs, h, w) of all scales, the finest first -> (n, outputs, h, w)."""
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
    if layer.device.type == "cpu":
        return F.interpolate(layer, size=like.shape[2:], mode="bilinear", align_corners=False)
    # The gradient of `interpolate` has no order of summation on CUDA; that of products has.
    down, across = (
        bilinear(before, after, layer.device, layer.dtype)
        for before, after in zip(layer.shape[2:], like.shape[2:], strict=True)
    )
    return down @ layer @ across.T


@functools.lru_cache(maxsize=64)
def bilinear(before: int, after: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix (after, before) of bilinear resizing along one axis, without aligned corners."""
    with torch.inference_mode(False):  # a training may need it after a score
        at = ((torch.arange(after) + 0.5) * before / after - 0.5).clamp(0, before - 1)
        return (1 - (at[:, None] - torch.arange(before)).abs()).clamp(min=0).to(device, dtype)
