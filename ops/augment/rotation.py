"""Rotation of images about their centre."""

from __future__ import annotations

import functools
from typing import NamedTuple

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


class Rotations(NamedTuple):
    """Which pixel of an image each pixel of its rotated views shows: `rotate_images` as a table.

    Pixels are counted from 1 row by row; 0 is none. The gradient by the image follows from the
    views' in a fixed order of summation; that of `grid_sample` has no order on CUDA.
    """

    sources: Tensor
    """(V, H * W): the pixel of the image that a pixel of a view shows."""
    targets: Tensor
    """(V, K, H * W): the up to K pixels of a view that show a pixel of the image, ascending."""

    def views(self, image: Tensor) -> Tensor:
        """The rotated views (V, C, H, W) of an image (C, H, W)."""
        pixels = F.pad(image.flatten(1), (1, 0))
        views = pixels[:, self.sources].transpose(0, 1)
        return views.reshape(-1, *image.shape)

    def gradients(self, gradients: Tensor) -> Tensor:
        """Gradients (V, C, H, W) by the views -> each view's gradient (V, C, H, W) by the image."""
        flat = F.pad(gradients.flatten(2), (1, 0))
        total = torch.zeros_like(flat[:, :, 1:])
        for targets in self.targets.unbind(1):
            total += flat.gather(2, targets[:, None].expand(-1, flat.shape[1], -1))
        return total.view(gradients.shape)


@functools.lru_cache(maxsize=64)
def rotations(
    height: int, width: int, angles: tuple[float, ...], device: torch.device
) -> Rotations:
    """The table of angles in radians. It is made on the CPU, so it is equal on all devices."""
    rows = torch.arange(height).float()[:, None].expand(-1, width)
    columns = torch.arange(width).float().expand(height, -1)
    places = torch.stack([torch.ones(height, width), rows, columns])
    shown = rotate_images(places.expand(len(angles), -1, -1, -1), torch.tensor(angles)).long()
    sources = (shown[:, 0] + shown[:, 1] * width + shown[:, 2]).flatten(1)
    ordered, order = sources.sort(dim=1, stable=True)
    pixels = torch.arange(1, height * width + 1).expand(len(angles), -1).contiguous()
    first = torch.searchsorted(ordered, pixels)
    count = torch.searchsorted(ordered, pixels, right=True) - first
    targets = [
        (order.gather(1, (first + k).clamp(max=order.shape[1] - 1)) + 1) * (k < count)
        for k in range(int(count.max()))
    ]
    return Rotations(sources.to(device), torch.stack(targets, dim=1).to(device))
