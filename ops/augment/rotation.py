"""Rotation of images about their centre."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate_images(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate images (B, C, H, W) by angles (B,) in radians about their centre.

    The size stays the same: corners without a source are black, what lies outside is cut off. Uses
    the nearest pixel.
    """
    cos, sin = angles.cos(), angles.sin()
    height, width = images.shape[2:]
    # The grid runs from -1 to 1 along both sides, so the rotation depends on the aspect ratio.
    theta = torch.stack(
        [
            torch.stack([cos, -sin * height / width, torch.zeros_like(cos)], dim=1),
            torch.stack([sin * width / height, cos, torch.zeros_like(cos)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)
