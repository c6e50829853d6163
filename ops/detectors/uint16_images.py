"""Images as 16-bit integers, the form in which a training keeps them in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint16(image: Tensor) -> Tensor:
    """An image (3, H, W) in [0, 1] as 16-bit integers on the CPU; (1, H, W) if it is grey."""
    grey = bool((image == image[:1]).all())
    return (image[:1] if grey else image).mul(65535).round().cpu().to(torch.uint16)


def from_uint16(stored: Tensor) -> Tensor:
    """The image (3, H, W) in [0, 1] that `to_uint16` stored."""
    return (stored.float() / 65535).expand(3, -1, -1)
