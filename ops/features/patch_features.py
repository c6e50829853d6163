"""Patch features: 3 x 3 averages of mid-level maps (PatchCore, section 3.1), or plain tokens."""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.features.blocks import block_of, in_blocks

Embedding = Literal["pooled", "concat", "plain"]


def embed(maps: list[Tensor], embedding: Embedding, dim: int) -> Tensor:
    """One vector per position of the finest map: (B, C_l, h_l, w_l) per layer -> (B, h, w, d).

    `pooled` (the authors' code): adaptive average pooling of each layer's 3 x 3 x C neighbourhood
    to `dim` values, then of the concatenated layers to `dim` values; d = dim.
    `concat` (anomalib): 3 x 3 averages per channel, layers concatenated; d = sum of C_l.
    `plain`: the channels of all layers as they are, for transformers, whose tokens see all others.
    As in the first two's originals, the border is padded with zeros that count in the averages.
    Coarser layers are resized bilinearly to the first.
    """
    if embedding == "concat":
        stacked = _stacked([F.avg_pool2d(layer, 3, stride=1, padding=1) for layer in maps])
    elif embedding == "plain":
        stacked = _stacked(maps)
    else:
        # If `dim` is a multiple of the number of layers, no value of the result mixes two layers,
        # so the second pooling can be done for each layer on its own.
        fold = len(maps) if dim % len(maps) == 0 else 1
        stacked = _stacked([_pooled(layer, dim, fold) for layer in maps])
        if (n := stacked.shape[1] // dim) > 1:
            stacked = sum((stacked[:, i::n] for i in range(1, n)), stacked[:, ::n]) / n
    return stacked.permute(0, 2, 3, 1).contiguous()


def _stacked(layers: list[Tensor]) -> Tensor:
    """(B, d_l, h_l, w_l) per layer -> (B, sum of d_l, h, w) at the size of the first."""
    size = layers[0].shape[-2:]
    return torch.cat([_resized(layer, size) for layer in layers], dim=1)


def _pooled(layer: Tensor, dim: int, fold: int) -> Tensor:
    """(B, C, h, w) -> (B, dim / fold, h, w): neighbourhoods pooled to `dim`, then by `fold`.

    In blocks of images: convolution kernels choose their order of summation by the batch's shape.
    """
    weight, groups = _averages(layer.shape[1], dim, fold, layer.dtype, layer.device)
    (pooled,) = in_blocks(
        lambda part: [F.conv2d(part[0], weight, padding=1, groups=groups)],
        [layer],
        block_of(layer.device),
    )
    return pooled


@functools.lru_cache(maxsize=16)
def _averages(
    channels: int, dim: int, fold: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, int]:
    """Adaptive pooling of 9 C values to `dim`, then by `fold`: convolution weights and groups.

    Bin i of b averages the values floor(i n / b) to ceil((i + 1) n / b) of n. If C and the number
    of results have a common divisor g, no bin crosses the border between one g-th of the channels
    and the next, so the convolution has g equal groups. With g = 1 it is dense and slow.
    """
    groups = math.gcd(channels, dim // fold)
    n, bins = 9 * channels // groups, dim // groups
    value, i = torch.arange(n), torch.arange(bins)[:, None]
    inside = ((value >= i * n // bins) & (value < -(-(i + 1) * n // bins))).double()
    weight = (inside / inside.sum(dim=1, keepdim=True)).view(-1, fold, n).mean(dim=1)
    weight = weight.view(-1, channels // groups, 3, 3).repeat(groups, 1, 1, 1)
    return weight.to(device, dtype), groups


def _resized(layer: Tensor, size: torch.Size) -> Tensor:
    if layer.shape[-2:] == size:
        return layer
    return F.interpolate(layer, size=size, mode="bilinear", align_corners=False)
