"""Passes of a fixed number of images, so that what an image gets does not depend on its batch.

Kernels choose their order of summation by the shape of a batch. So every pass has the same shape:
one image on a CPU, a block padded with zeros on a GPU, where single images would leave it idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Images of a pass on each kind of device.
BLOCK = {"cpu": 1, "cuda": 32}


def block_of(device: torch.device) -> int:
    """Images of a pass on a device."""
    return BLOCK.get(device.type, 1)


def in_blocks(
    function: Callable[[list[Tensor]], Sequence[Tensor]], batches: Sequence[Tensor], block: int
) -> list[Tensor]:
    """Results (n, ...) of a function of batches (n, ...) that is called with `block` rows each.

    The function must treat each row alone.
    """
    parts = zip(*(torch.split(batch, block) for batch in batches), strict=True)
    passes = [_of_block(function, part, block) for part in parts]
    return [torch.cat(rows) if len(rows) > 1 else rows[0] for rows in zip(*passes, strict=True)]


def _of_block(
    function: Callable[[list[Tensor]], Sequence[Tensor]], part: Sequence[Tensor], block: int
) -> list[Tensor]:
    count = len(part[0])
    padded = [
        torch.cat([rows, rows.new_zeros(block - count, *rows.shape[1:])]) if count < block else rows
        for rows in part
    ]
    return [rows[:count] for rows in function(padded)]
