"""Normalizing flows on the vectors of single positions, conditioned on where the position is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ops.errors import SettingError
from ops.features.backbone import LayerShape
from ops.flows.vector_flow import seeded

#: How a coupling mixes channels: soft by a random rotation, hard by a random permutation. Drawing a
#: rotation takes 2 s for 2,048 channels and 0.1 s for 512.
Mixing = Literal["soft", "hard"]


class Positions(NamedTuple):
    """Vectors (n, k, C) of a layer at k positions of each of n images, and the positions (n, k)."""

    vectors: Tensor
    places: Tensor


class PositionFlows(nn.Module):
    """One conditional flow per layer, of FrEIA's one-sided affine couplings.

    The condition is the position's code, a vector of `condition` numbers (CFLOW-AD, Gudovskiy et
    al., WACV 2022, section 4.2). `forward` returns the loss of each image: the mean over positions
    of -log sigmoid(log p / C), summed over layers. Weights and mixing are drawn from `seed`.

    The buffer `peaks` (layers,) holds the largest log p / C of good images; 0 until it is set.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        blocks: int,
        clamp: float,
        condition: int,
        mixing: Mixing,
        seed: int,
    ) -> None:
        super().__init__()
        # Imported here because it takes three seconds and most detectors have no flow.
        from FrEIA.framework import SequenceINN  # noqa: PLC0415
        from FrEIA.modules import AllInOneBlock  # noqa: PLC0415

        self.shapes: Tensor
        self.peaks: Tensor
        self.register_buffer("shapes", torch.tensor(shapes))
        self.register_buffer("peaks", torch.zeros(len(shapes), dtype=torch.float64))
        self._flows = nn.ModuleList()
        with seeded(seed):
            for number, (channels, height, width) in enumerate(shapes):
                codes = position_codes(condition, height, width)
                self.register_buffer(f"_codes_{number}", codes, persistent=False)
                flow = SequenceINN(channels)
                for _ in range(blocks):
                    flow.append(
                        AllInOneBlock,
                        cond=0,
                        cond_shape=(condition,),
                        subnet_constructor=perceptron,
                        affine_clamping=clamp,
                        global_affine_type="SOFTPLUS",
                        permute_soft=mixing == "soft",
                    )
                self._flows.append(flow)

    def forward(self, layers: list[Positions]) -> Tensor:
        """Positions of each layer of n images -> losses (n,)."""
        if not len(layers[0].vectors):  # the empty loss has gradients of zero
            one = [
                Positions(p.vectors.new_zeros(1, 1, p.vectors.shape[2]), p.places.new_zeros(1, 1))
                for p in layers
            ]
            return torch.as_tensor(self(one)[:0])
        likelihoods = [self.likelihoods(layer, positions) for layer, positions in enumerate(layers)]
        losses = [-nn.functional.logsigmoid(logs).mean(dim=1) for logs in likelihoods]
        return torch.stack(losses).sum(dim=0)

    def likelihoods(self, layer: int, positions: Positions) -> Tensor:
        """Log p / C of each position (n, k), where C is the number of channels."""
        latent, volume = self.latents(layer, positions)
        channels = latent.shape[2]
        constant = channels / 2 * math.log(2 * math.pi)
        squares = latent.square().sum(dim=2, dtype=torch.float64)
        return torch.as_tensor((volume - squares / 2 - constant) / channels)

    def latents(self, layer: int, positions: Positions) -> tuple[Tensor, Tensor]:
        """Latent vectors (n, k, C), standard normal for good images, and log |det J| (n, k)."""
        count, k, channels = positions.vectors.shape
        vectors = positions.vectors.reshape(-1, channels)  # (n * k, C)
        latent, volume = self._flows[layer](vectors, c=[self._codes(layer, positions.places)])
        return latent.view(count, k, channels), volume.view(count, k)

    def inverse(self, layer: int, latent: Tensor, places: Tensor) -> Tensor:
        """Latent vectors (n, k, C) at positions (n, k) -> their feature vectors (n, k, C)."""
        flat = latent.reshape(-1, latent.shape[2])
        vectors, _ = self._flows[layer](flat, c=[self._codes(layer, places)], rev=True)
        return torch.as_tensor(vectors.view(latent.shape))

    def _codes(self, layer: int, places: Tensor) -> Tensor:
        codes = self.get_buffer(f"_codes_{layer}")
        return codes[places.flatten()]

    @staticmethod
    def parameter_count(shapes: Sequence[LayerShape], blocks: int, condition: int) -> int:
        """The number of trainable weights."""
        count = 0
        for channels, _, _ in shapes:
            inputs, outputs = channels - channels // 2 + condition, 2 * (channels // 2)
            count += (inputs + 1) * 2 * inputs + (2 * inputs + 1) * outputs + 2 * channels
        return blocks * count


def perceptron(inputs: int, outputs: int) -> nn.Module:
    """The network that predicts scale and shift: one hidden layer of twice the input width."""
    return nn.Sequential(nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs))


def position_codes(size: int, height: int, width: int) -> Tensor:
    """Codes (height * width, size) of positions: sines and cosines of the column, then of the row.

    The positional encoding of Vaswani et al. 2017 of either coordinate, concatenated. Raises
    SettingError if `size` is no multiple of 4.
    """
    if size % 4:
        raise SettingError(f"a position code cannot have {size} numbers; give a multiple of 4")
    half = size // 2
    frequencies = 1e4 ** (-torch.arange(0, half, 2) / half)

    def code(count: int) -> Tensor:
        angles = torch.arange(count)[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)

    columns = code(width)[None].expand(height, -1, -1)
    rows = code(height)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)
