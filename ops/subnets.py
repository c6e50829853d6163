"""What predicts scale and shift in the couplings of flows on maps."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

#: (channels in, channels out) -> a network from maps (n, in, h, w) to maps (n, out, h, w).
Subnet = Callable[[int, int], nn.Module]


def convolutions(kernel: int, ratio: float) -> Subnet:
    """Convolution, ReLU, convolution; `ratio` hidden channels to each that comes in.

    FastFlow (Yu et al. 2021), section 3.3.
    """

    def build(inputs: int, outputs: int) -> nn.Module:
        hidden = max(1, int(inputs * ratio))
        return nn.Sequential(
            nn.Conv2d(inputs, hidden, kernel, padding="same"),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, kernel, padding="same"),
        )

    return build
