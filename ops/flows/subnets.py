"""Subnets: the networks that predict scale and shift in the couplings of flows on feature maps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ops.errors import SettingError

#: (channels in, channels out) -> a network from maps (n, in, h, w) to maps (n, out, h, w).
Subnet = Callable[[int, int], nn.Module]


def convolutions(kernel: int, ratio: float) -> Subnet:
    """Convolution, ReLU, convolution; `ratio` is hidden channels per input channel.

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


def stack(
    layers: Sequence[str], hidden: int, heads: int, dropout: float, generators: DropoutGenerators
) -> Subnet:
    """1 x 1 convolution, residual `conv` and `attn` layers in any order, 1 x 1 convolution.

    SSNF (Chiu 2022). The softmax of the attention is the only non-linearity.
    Raises SettingError if a layer is unknown or `hidden` is no multiple of 2 * `heads`.
    """
    if unknown := sorted(set(layers) - {"conv", "attn"}):
        raise SettingError(f"unknown subnet layers {unknown}; known: conv, attn")
    if hidden % (2 * heads):
        raise SettingError(f"hidden {hidden} must be a multiple of twice the {heads} heads")

    def layer(kind: str) -> nn.Module:
        if kind == "conv":
            convolution = nn.Conv2d(hidden, hidden, 3, padding="same")
            return nn.Sequential(convolution, Dropout(dropout, generators, pixels=False))
        return Attention(hidden, heads, dropout, generators)

    def build(inputs: int, outputs: int) -> nn.Module:
        residual = [Residual(layer(kind)) for kind in layers]
        return nn.Sequential(nn.Conv2d(inputs, hidden, 1), *residual, nn.Conv2d(hidden, outputs, 1))

    return build


class DropoutGenerators:
    """The random generators of a batch, one per image, shared by all dropout of a network."""

    def __init__(self) -> None:
        self.per_image: list[torch.Generator] = []


class Dropout(nn.Module):
    """Dropout drawn from each image's own generator, so independent of batch and worker."""

    def __init__(self, share: float, generators: DropoutGenerators, pixels: bool) -> None:
        """With `pixels` single values are dropped, else whole channels; `share` of them."""
        super().__init__()
        self._share, self._generators, self._pixels = share, generators, pixels

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        generators = self._generators.per_image
        if not self.active or not generators:
            return x
        shape = x.shape[1:] if self._pixels else (x.shape[1], 1, 1)
        uniform = [torch.rand(shape, generator=g, device=x.device) for g in generators]
        return x.masked_fill(torch.stack(uniform) < self._share, 0) / (1 - self._share)

    @property
    def active(self) -> bool:
        """Whether anything is dropped: in training only."""
        return self.training and self._share > 0


class Residual(nn.Module):
    """The sum of the input and a layer's output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        return x + torch.as_tensor(self.layer(x))


class Attention(nn.Module):
    """Multi-head self-attention among the positions of a feature map, without output projection.

    A positional code is added to the input; one linear layer with weight normalisation then gives
    keys, values and queries.
    """

    def __init__(
        self, channels: int, heads: int, dropout: float, generators: DropoutGenerators
    ) -> None:
        super().__init__()
        self.heads = heads
        self.project = weight_norm(nn.Linear(channels, 3 * channels, bias=False))
        self._dropout = Dropout(dropout, generators, pixels=True)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        n, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (n, h * w, c)
        tokens = tokens + _positional_codes_on(height * width, channels, x.device, x.dtype)
        split = self.project(tokens).view(n, height * width, 3, self.heads, channels // self.heads)
        keys, values, queries = split.permute(2, 0, 3, 1, 4)  # each (n, heads, h * w, c / heads)
        if self._dropout.active:
            scores = queries @ keys.transpose(2, 3) / math.sqrt(channels // self.heads)
            attended = self._dropout(scores.softmax(dim=3)) @ values
        else:  # the same, without (h * w)^2 weights in memory
            attended = F.scaled_dot_product_attention(queries, keys, values)
        return torch.as_tensor(attended.transpose(2, 3).reshape(n, channels, height, width))


@functools.lru_cache(maxsize=64)
def _positional_codes_on(
    count: int, channels: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    with torch.inference_mode(False):  # a fit may need the same codes later
        return positional_codes(count, channels).to(device, dtype)


def positional_codes(count: int, channels: int) -> Tensor:
    """Codes (count, channels) of positions in raster order: sines, then cosines."""
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float64) / max(1, half - 1)
    angles = torch.arange(count)[:, None] * torch.exp(-math.log(10_000) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
