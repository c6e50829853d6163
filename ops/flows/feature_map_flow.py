"""Normalizing flows on the feature maps of a backbone, and anomaly maps from their densities."""

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

#: How feature maps are normalised before their flow. Both bring a map to mean 0 and variance 1 over
#: (C, h, w). trained: each value then gets a trained scale and shift, as in common implementations
#: of FastFlow; the paper does not say. Log |det J| leaves the normalisation out, so nothing keeps
#: trained scales from 0.
Norm = Literal["trained", "plain"]


class MapFlows(nn.Module):
    """One flow per layer, of FrEIA's one-sided affine couplings with fixed permutations.

    `forward` returns the training loss of each image: -log p in nats, constants included, summed
    over all layers. It is a small difference of large numbers, hence float64. Weights and
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
        """A flow has one coupling per subnet in `subnets`; `clamp` bounds its log-scales."""
        super().__init__()
        # Imported here because it takes three seconds and most detectors have no flow.
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
        """Feature maps (n, C, h, w) of all layers -> -log p (n,)."""
        if not len(maps[0]):  # FrEIA needs an image; the empty loss has gradients of zero
            one = [layer.new_zeros(1, *layer.shape[1:]) for layer in maps]
            return torch.as_tensor(self(one)[:0])
        constant = self.elements / 2 * math.log(2 * math.pi)
        nll = torch.full((len(maps[0]),), constant, dtype=torch.float64, device=maps[0].device)
        for latent, volume in self.latents(maps):
            squares = latent.square().sum(dim=(1, 2, 3), dtype=torch.float64)
            nll = nll + squares / 2 - volume
        return nll

    def latents(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Feature maps (n, C, h, w) -> per layer a latent of that shape, and log |det J| (n,)."""
        parts = zip(self._flows, self._norms, maps, strict=True)
        return [flow(norm(layer)) for flow, norm, layer in parts]

    def inverse(self, latents: list[Tensor]) -> list[Tensor]:
        """Latents -> normalised feature maps."""
        parts = zip(self._flows, latents, strict=True)
        return [flow(latent, rev=True)[0] for flow, latent in parts]

    @staticmethod
    def parameter_count(shapes: Sequence[LayerShape], subnets: Sequence[Subnet], norm: Norm) -> int:
        """The number of trainable weights; subnets are built on the meta device, without memory."""
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


def negative_log_density(densities: list[Tensor], size: torch.Size) -> Tensor:
    """Anomaly maps (n, H, W) of `size`: -log of the mean over layers of densities (n, h, w) <= 1.

    Densities are relative to the highest possible one, and up-sampled bilinearly without aligned
    corners. FastFlow and SSNF use the negative mean itself, CFLOW-AD the negative sum. The
    logarithm keeps their order and separates very small densities, down to 1e-308, the smallest
    double.
    """
    mean = torch.stack([_upsampled(density.double(), size) for density in densities]).mean(dim=0)
    return -mean.clamp(min=torch.finfo(torch.float64).tiny).log()


def _upsampled(density: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(density[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
