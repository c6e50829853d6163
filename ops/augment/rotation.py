"""Pictures turned about their middle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotated(images: Tensor, angles: Tensor) -> Tensor:
    """Images (B, C, H, W) turned by angles (B,) in radians about their middle; black corners.

    The nearest pixel is taken. Squares keep their shape; other pictures are cut.
    """
    cos, sin = angles.cos(), angles.sin()
    height, width = images.shape[2:]
    # The grid runs from -1 to 1 along both sides, whatever their lengths.
    theta = torch.stack(
        [
            torch.stack([cos, -sin * height / width, torch.zeros_like(cos)], dim=1),
            torch.stack([sin * width / height, cos, torch.zeros_like(cos)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)
