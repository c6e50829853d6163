"""What predicts scale and shift in the couplings of flows on maps: convolutions and attention."""

from __future__ import annotations

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


def stack(layers: Sequence[str], hidden: int, heads: int, dropout: float, draws: Draws) -> Subnet:
    """1 x 1 convolution, residual `conv` and `attn` layers in any order, 1 x 1 convolution.

    SSNF (Chiu 2022), whose subnets have no other non-linearity than the softmax of the attention.
    Raises SettingError if a layer is unknown or the heads cannot share the channels.
    """
    if unknown := sorted(set(layers) - {"conv", "attn"}):
        raise SettingError(f"unknown layers {unknown} of a subnet; known: conv, attn")
    if hidden % (2 * heads):
        raise SettingError(f"hidden {hidden} must be a multiple of twice the {heads} heads")

    def layer(kind: str) -> nn.Module:
        if kind == "conv":
            convolution = nn.Conv2d(hidden, hidden, 3, padding="same")
            return nn.Sequential(convolution, Dropout(dropout, draws, pixels=False))
        return Attention(hidden, heads, dropout, draws)

    def build(inputs: int, outputs: int) -> nn.Module:
        residual = [Residual(layer(kind)) for kind in layers]
        return nn.Sequential(nn.Conv2d(inputs, hidden, 1), *residual, nn.Conv2d(hidden, outputs, 1))

    return build


class Draws:
    """The generators, one for each image, that all dropout of a network draws from."""

    def __init__(self) -> None:
        self.generators: list[torch.Generator] = []


class Dropout(nn.Module):
    """Dropout that depends on an image's own generator, and so on no other image or worker."""

    def __init__(self, share: float, draws: Draws, pixels: bool) -> None:
        """`pixels`: each value on its own; else whole channels."""
        super().__init__()
        self._share, self._draws, self._pixels = share, draws, pixels

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        generators = self._draws.generators
        if not self.active or not generators:
            return x
        shape = x.shape[1:] if self._pixels else (x.shape[1], 1, 1)
        drawn = [torch.rand(shape, generator=g, device=x.device) for g in generators]
        return x.masked_fill(torch.stack(drawn) < self._share, 0) / (1 - self._share)

    @property
    def active(self) -> bool:
        """Whether it leaves anything out."""
        return self.training and self._share > 0


class Residual(nn.Module):
    """What comes in, and what a layer makes of it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        return x + torch.as_tensor(self.layer(x))


class Attention(nn.Module):
    """Self-attention among the positions of a map; no projection of what the heads find.

    Queries, keys and values come from one linear layer, its weights normalised, after a code of the
    positions is added.
    """

    def __init__(self, channels: int, heads: int, dropout: float, draws: Draws) -> None:
        super().__init__()
        self.heads = heads
        self.project = weight_norm(nn.Linear(channels, 3 * channels, bias=False))
        self._dropout = Dropout(dropout, draws, pixels=True)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        n, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (n, h * w, c)
        tokens = tokens + positions(height * width, channels).to(x)
        shared = self.project(tokens).view(n, height * width, 3, self.heads, channels // self.heads)
        keys, values, queries = shared.permute(2, 0, 3, 1, 4)  # each (n, heads, h * w, c / heads)
        if self._dropout.active:
            scores = queries @ keys.transpose(2, 3) / math.sqrt(channels // self.heads)
            found = self._dropout(scores.softmax(dim=3)) @ values
        else:  # the same without keeping (h * w)^2 weights
            found = F.scaled_dot_product_attention(queries, keys, values)
        return torch.as_tensor(found.transpose(2, 3).reshape(n, channels, height, width))


def positions(count: int, channels: int) -> Tensor:
    """A code (count, channels) of positions in raster order: sines, then cosines."""
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float64) / max(1, half - 1)
    angles = torch.arange(count)[:, None] * torch.exp(-math.log(10_000) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
