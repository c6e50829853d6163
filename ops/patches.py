"""Locally aware patch features: 3 x 3 averages of mid-level maps (PatchCore, section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Embedding = Literal["pooled", "concat"]


def embed(maps: list[Tensor], embedding: Embedding, dim: int) -> Tensor:
    """One vector per cell of the finest map: (B, C_l, h_l, w_l) per layer -> (B, h, w, d).

    `pooled`, as the authors' code does it: each layer's 3 x 3 x C neighbourhood is averaged down to
    `dim` values in one dimension, and so are the layers side by side; d = dim.
    `concat`, as anomalib does it: 3 x 3 averages per channel, layers concatenated; d = sum of C_l.
    Zeros beyond the border are averaged in, as both do. Coarser layers are resized bilinearly.
    """
    size = maps[0].shape[-2:]
    parts = [_local(layer, dim if embedding == "pooled" else None) for layer in maps]
    parts = [_resized(part, size) for part in parts]
    stacked = torch.cat(parts, dim=1).permute(0, 2, 3, 1)  # (B, h, w, sum of widths)
    if embedding == "concat":
        return stacked.contiguous()
    flat = stacked.reshape(-1, 1, stacked.shape[-1])
    return F.adaptive_avg_pool1d(flat, dim).view(*stacked.shape[:3], dim)


def _local(layer: Tensor, dim: int | None) -> Tensor:
    """(B, C, h, w) -> (B, C or dim, h, w): the 3 x 3 neighbourhood averaged."""
    batch, channels, height, width = layer.shape
    if dim is None or channels == dim:  # 9 * dim values to dim bins is the mean of each channel
        return F.avg_pool2d(layer, 3, stride=1, padding=1)
    unfolded = F.unfold(layer, 3, padding=1)  # (B, C * 9, h * w), channel-major
    pooled = F.adaptive_avg_pool1d(unfolded.transpose(1, 2), dim)  # (B, h * w, dim)
    return pooled.transpose(1, 2).reshape(batch, dim, height, width)


def _resized(layer: Tensor, size: torch.Size) -> Tensor:
    if layer.shape[-2:] == size:
        return layer
    return F.interpolate(layer, size=size, mode="bilinear", align_corners=False)
