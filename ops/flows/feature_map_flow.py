"""Normalizing flows on the maps of a backbone's layers, and anomaly maps of their likelihoods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.features.backbone import LayerShape
from ops.flows.subnets import Subnet
from ops.flows.vector_flow import seeded

#: How maps are brought to mean 0 and variance 1 over (C, h, w) before their flow. trained: each
#: value then gets a scale and a shift of its own, as in common implementations of FastFlow, where
#: the paper is silent; no volume is counted for them.
Norm = Literal["trained", "plain"]


class MapFlows(nn.Module):
    """A flow for each layer, of FrEIA's one-sided affine couplings with fixed permutations.

    Forward gives an image's -log p in nats, constants included, summed over all layers: what
    training lowers. It is a small difference of large numbers, and so float64. Weights and
    permutations are drawn from `seed`.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        subnets: Sequence[Subnet],
        clamp: float,
        norm: Norm,
        seed: int,
    ) -> None:
        """A flow has one coupling for each of `subnets`, whose log-scales `clamp` bounds."""
        super().__init__()
        # Imported here: it takes three seconds, and most detectors have no flow.
        from FrEIA.framework import SequenceINN  # noqa: PLC0415
        from FrEIA.modules import AllInOneBlock  # noqa: PLC0415

        self.shapes: Tensor
        self.register_buffer("shapes", torch.tensor(shapes))
        self._norms, self._flows = nn.ModuleList(), nn.ModuleList()
        with seeded(seed):
            for shape in shapes:
                self._norms.append(nn.LayerNorm(shape, elementwise_affine=norm == "trained"))
                flow = SequenceINN(*shape)
                for subnet in subnets:
                    flow.append(AllInOneBlock, subnet_constructor=subnet, affine_clamping=clamp)
                self._flows.append(flow)
        self.elements = sum(math.prod(shape) for shape in shapes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Layers (n, C, h, w) -> (n,)."""
        if not len(maps[0]):  # FrEIA looks at the first image; gradients of none are zeros
            one = [layer.new_zeros(1, *layer.shape[1:]) for layer in maps]
            return torch.as_tensor(self(one)[:0])
        constant = self.elements / 2 * math.log(2 * math.pi)
        found = torch.full((len(maps[0]),), constant, dtype=torch.float64, device=maps[0].device)
        for latent, volume in self.latents(maps):
            squares = latent.square().sum(dim=(1, 2, 3), dtype=torch.float64)
            found = found + squares / 2 - volume
        return found

    def latents(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Layers (n, C, h, w) -> for each what should be normal (n, C, h, w), log volume (n,)."""
        parts = zip(self._flows, self._norms, maps, strict=True)
        return [flow(norm(layer)) for flow, norm, layer in parts]

    def inverse(self, latents: list[Tensor]) -> list[Tensor]:
        """What `latents` gives -> the layers, brought to mean 0 and variance 1."""
        parts = zip(self._flows, latents, strict=True)
        return [flow(latent, rev=True)[0] for flow, latent in parts]

    @staticmethod
    def trained_of(shapes: Sequence[LayerShape], subnets: Sequence[Subnet], norm: Norm) -> int:
        """How many weights it has; subnets are built, without memory for them."""
        count = 0
        with torch.device("meta"):
            for shape in shapes:
                channels = shape[0]
                parts = [
                    subnet(channels - channels // 2, 2 * (channels // 2)) for subnet in subnets
                ]
                count += sum(p.numel() for part in parts for p in part.parameters())
                count += 2 * channels * len(subnets)
                count += 2 * math.prod(shape) if norm == "trained" else 0
        return count


def surprise(densities: list[Tensor], size: torch.Size) -> Tensor:
    """-log of the mean of layers' densities (h, w), relative to the highest, at an input's `size`.

    FastFlow and SSNF take the negative mean itself, up-sampled bilinearly (no aligned corners) to
    the input; CFLOW-AD the negative sum. The logarithm keeps their order, and tells the very
    unlikely apart, down to 1e-308, where doubles end; it is 0 where the density is 1.
    """
    mean = torch.stack([_upsampled(density.double(), size) for density in densities]).mean(dim=0)
    return -mean.clamp(min=torch.finfo(torch.float64).tiny).log()


def _upsampled(density: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(density[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
