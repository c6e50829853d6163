"""The same exposure for all pictures, each set by its own pixels, so scores stay comparable."""

from __future__ import annotations

from torch import Tensor

from ops.images.resize import Exposure

#: Where ImageNet's pictures have their middle grey, which is what the networks know best; a median
#: lies below the mean, as most pictures have a few bright places.
_MEDIAN, _MEAN = 0.4, 0.45
#: A little less contrast than ImageNet's 0.23, so that three standard deviations are not clipped.
_STD = 0.15
#: Added to what is divided by: a black picture stays black, and a plain one's noise stays faint.
_DARKEST, _PLAINEST = 0.001, 0.02


def exposed(pixels: Tensor, full_scale: int, exposure: Exposure) -> Tensor:
    """Integer pixels (C, H, W) of one picture as float32 in [0, 1].

    All channels share one median, or one mean and standard deviation: `median` keeps the ratios of
    colours, `standard` those of their differences. Neither threads nor batches change a bit.
    """
    x = pixels.float() / full_scale
    if exposure == "median":
        return (x * (_MEDIAN / (x.median() + _DARKEST))).clamp_(0, 1)
    if exposure == "standard":
        # float64 holds these sums of integers exactly, in whatever order they are taken.
        values = pixels.double()
        mean = values.mean() / full_scale
        square = values.square().mean() / full_scale**2
        std = (square - mean.square()).clamp_min(0).sqrt()
        return ((x - mean) * (_STD / (std + _PLAINEST)) + _MEAN).clamp_(0, 1)
    return x
