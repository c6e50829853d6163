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
    """Integer pixels (C, H, W) of one image as float32 in [0, 1].

    All channels share one median, or one mean and standard deviation: `median` keeps the ratios of
    colours, `standard` the ratios of their differences. The result does not depend on the number
    of threads or on the batch, to the last bit.
    """
    x = pixels.float() / full_scale
    if exposure == "median":
        return (x * (_MEDIAN / (x.median() + _DARKEST))).clamp_(0, 1)
    if exposure == "standard":
        # float64 holds these sums of integers exactly, in any order of summation.
        values = pixels.double()
        mean = values.mean() / full_scale
        square = values.square().mean() / full_scale**2
        std = (square - mean.square()).clamp_min(0).sqrt()
        return ((x - mean) * (_STD / (std + _PLAINEST)) + _MEAN).clamp_(0, 1)
    return x
