"""Exposure normalisation: each image is scaled by its own statistics, so that images compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ops.images.resize import Exposure

#: Typical values of ImageNet, on which the backbones were trained. The median is below the mean,
#: because most images have a few bright areas.
_MEDIAN, _MEAN = 0.4, 0.45
#: Less than the 0.23 of ImageNet, so that three standard deviations are not clipped.
_STD = 0.15
#: Added to the divisors: a black image stays black, and the noise of a uniform image stays faint.
_DARKEST, _PLAINEST = 0.001, 0.02


class Statistics(NamedTuple):
    """Of all integers of a picture: the lower median, the mean, and the mean of squares."""

    median: int
    mean: float
    square: float


#: Numbers of a picture that are counted at a time.
_COUNTED = 2**22


def statistics_of(
    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    bit_depth: int,
    inside: Callable[[int, int], npt.NDArray[np.bool_]] | None = None,
) -> Statistics:
    """The statistics of a picture (H, W, C), exact, with little memory beside the picture.

    `inside` tells which pixels (rows, W) of rows [start, stop) count; without it all do.
    """
    counts = np.zeros(2**bit_depth, np.int64)
    rows = max(1, _COUNTED // max(1, pixels[:1].size))
    for start in range(0, len(pixels), rows):
        part = pixels[start : start + rows]
        counted = part if inside is None else part[inside(start, start + len(part))]
        counts += np.bincount(counted.ravel(), minlength=len(counts))
    total, levels = int(counts.sum()), np.arange(len(counts), dtype=object)
    median = int(np.searchsorted(counts.cumsum(), (total + 1) // 2))
    mean, square = (float(int((counts * levels**n).sum())) / total for n in (1, 2))
    return Statistics(median, mean, square)


def normalise_exposure(
    pixels: Tensor, full_scale: int, exposure: Exposure, wholes: Sequence[Statistics] = ()
) -> Tensor:
    """Integer pixels (..., C, H, W) as float32 in [0, 1], each image by its own statistics.

    All channels share one median, or one mean and standard deviation: `median` keeps the ratios of
    colours, `standard` the ratios of their differences. The result does not depend on the number
    of threads or on the batch, to the last bit. Tiles (B, C, H, W) take the statistics of the whole
    picture that each is of (`wholes`), so that they keep their differences.
    """
    x = pixels.float() / full_scale
    if exposure == "median":
        if wholes:
            median = _column([whole.median for whole in wholes], x).float() / full_scale
        else:
            median = x.flatten(-3).median(dim=-1).values[..., None, None, None]
        return (x * (_MEDIAN / (median + _DARKEST))).clamp_(0, 1)
    if exposure == "standard":
        # float64 holds these sums of integers exactly, in any order of summation.
        if wholes:
            means = _column([whole.mean for whole in wholes], x)
            squares = _column([whole.square for whole in wholes], x)
        else:
            values = pixels.double().flatten(-3)
            means = values.mean(dim=-1)[..., None, None, None]
            squares = values.square().mean(dim=-1)[..., None, None, None]
        mean, square = means / full_scale, squares / full_scale**2
        std = (square - mean.square()).clamp_min(0).sqrt()
        shift, factor = mean.float(), (_STD / (std + _PLAINEST)).float()
        return ((x - shift) * factor + _MEAN).clamp_(0, 1)
    return x


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """Values (B,) as (B, 1, 1, 1) in float64 on the device of `like`."""
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None, None, None]
