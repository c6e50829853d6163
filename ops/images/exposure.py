"""Exposure normalisation: each image is scaled by its own statistics, so that images compare."""

from __future__ import annotations

from torch import Tensor

from ops.images.resize import Exposure

#: Typical values of ImageNet, on which the backbones were trained. The median is below the mean,
#: because most images have a few bright areas.
_MEDIAN, _MEAN = 0.4, 0.45
#: Less than the 0.23 of ImageNet, so that three standard deviations are not clipped.
_STD = 0.15
#: Added to the divisors: a black image stays black, and the noise of a uniform image stays faint.
_DARKEST, _PLAINEST = 0.001, 0.02


def normalise_exposure(pixels: Tensor, full_scale: int, exposure: Exposure) -> Tensor:
    """Integer pixels (..., C, H, W) as float32 in [0, 1], each image by its own statistics.

    All channels share one median, or one mean and standard deviation: `median` keeps the ratios of
    colours, `standard` the ratios of their differences. The result does not depend on the number
    of threads or on the batch, to the last bit.
    """
    x = pixels.float() / full_scale
    if exposure == "median":
        median = x.flatten(-3).median(dim=-1).values[..., None, None, None]
        return (x * (_MEDIAN / (median + _DARKEST))).clamp_(0, 1)
    if exposure == "standard":
        # float64 holds these sums of integers exactly, in any order of summation.
        values = pixels.double().flatten(-3)
        mean = values.mean(dim=-1) / full_scale
        square = values.square().mean(dim=-1) / full_scale**2
        std = (square - mean.square()).clamp_min(0).sqrt()
        shift, factor = (
            statistic.float()[..., None, None, None]
            for statistic in (mean, _STD / (std + _PLAINEST))
        )
        return ((x - shift) * factor + _MEAN).clamp_(0, 1)
    return x
