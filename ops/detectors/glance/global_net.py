"""Global-Net of Glance: predicts the descriptor of a hidden patch from the rest of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ops.detectors.glance.local_net import LocalNet, empty_linear
from ops.detectors.glance.masked_windows import masked_window_means
from ops.detectors.glance.partial_convolution import (
    MaskedFeatures,
    PartialNetwork,
    check_network,
)
from ops.detectors.glance.usual_scores import UsualScores

#: Windows that are hidden in one pass.
_WINDOWS_PER_PASS = {"cpu": 32, "cuda": 256}


class GlobalNet(nn.Module):
    """A classifier with partial convolutions, a mean over visible positions, and a linear layer.

    It starts from the classifier's weights and batch-norm statistics. The paper does not give its
    layers.
    """

    def __init__(self, network: fx.GraphModule, linear: nn.Linear) -> None:
        """`linear` maps the channels of all outputs of the network to a descriptor.

        Raises UserError if the network has layers without a partial version.
        """
        super().__init__()
        check_network(network, "the backbone")
        self.network, self.linear = network, linear

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Normalised images (n, 3, H, W) and masks (n, 1, H, W), 1 = visible -> (n, dim)."""
        out: dict[str, MaskedFeatures]
        out = PartialNetwork(self.network).run(MaskedFeatures.of(images, mask))
        return self._descriptors([features.mean() for features in out.values()])

    def unmasked(self, image: Tensor) -> PartialNetwork:
        """All feature maps of a normalised image (1, 3, H, W) with nothing hidden."""
        network = PartialNetwork(self.network)
        network.run(MaskedFeatures(image, torch.ones_like(image[:, :1])))
        return network

    def hidden_windows(
        self, unmasked: PartialNetwork, top: Tensor, left: Tensor, patch: int
    ) -> Tensor:
        """Descriptors (n, dim) of one image with one window hidden at a time.

        Equal to `forward` up to rounding. `top` and `left` (n,) are in pixels.
        """
        size = _WINDOWS_PER_PASS.get(top.device.type, 32)
        passes = zip(torch.split(top, size), torch.split(left, size), strict=True)
        descriptors = [
            self._descriptors(masked_window_means(self.network, unmasked, *corners, patch))
            for corners in passes
        ]
        return torch.cat(descriptors)

    def _descriptors(self, means: list[Tensor]) -> Tensor:
        return torch.as_tensor(self.linear(torch.cat(means, dim=1)))


class Head(nn.Module):
    """The distortion head C: the logit that a patch is clean, given both descriptors."""

    def __init__(self, dim: int, width: int = 128) -> None:
        super().__init__()
        self.first = empty_linear(3 * dim, width)
        self.second = empty_linear(width, 1)

    def forward(self, local: Tensor, predicted: Tensor) -> Tensor:
        """Descriptors of Local-Net and Global-Net, (n, dim) each -> (n,)."""
        both = torch.cat([local, predicted, (local - predicted).abs()], dim=1)
        return torch.as_tensor(self.second(F.relu(self.first(both)))[:, 0])


class GlobalBatch(NamedTuple):
    """Normalised images (n, 3, H, W) with a hidden patch, and that patch clean and distorted."""

    images: Tensor
    mask: Tensor
    """(n, 1, H, W): 0 in the patch, 1 elsewhere."""
    clean: Tensor
    """(n, 3, patch, patch)."""
    distorted: Tensor
    """(n, 3, patch, patch), with synthetic stains."""


class GlanceNetwork(nn.Module):
    """Local-Net, Global-Net and the distortion head: all that scores depend on.

    Forward trains Global-Net (`around`) and the head; Local-Net is frozen. The buffer `scale` is
    the divisor of s_IAD in the score. `usual_windows` and `usual_cells` hold what good images get
    at each window, and at each cell of the map of means over windows.
    """

    def __init__(
        self,
        local: LocalNet,
        around: GlobalNet,
        head: Head,
        grids: tuple[Sequence[int], Sequence[int]],
        distortion: float = 1.0,
    ) -> None:
        """`grids` are the windows and the cells (h, w); `distortion` is the weight lambda_t."""
        super().__init__()
        self.usual_windows, self.usual_cells = (UsualScores(grid) for grid in grids)
        self.local, self.around, self.head = local.requires_grad_(False), around, head
        self._distortion = distortion
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def forward(self, batch: GlobalBatch) -> Tensor:
        """Losses (n,): l_IAD of clean patches + lambda_t * l_DAD of clean and distorted ones."""
        predicted = self.around(batch.images, batch.mask)
        with torch.no_grad():
            clean, distorted = self.local(batch.clean), self.local(batch.distorted)
        logits = self.head(torch.cat([clean, distorted]), torch.cat([predicted, predicted]))
        # C is the probability of "clean", so that 1 - C grows with the anomaly; the sources
        # contradict each other here.
        losses = F.softplus(torch.cat([-logits[: len(clean)], logits[len(clean) :]]))
        l_dad = losses.view(2, -1).mean(dim=0)
        return inconsistency(clean, predicted) + self._distortion * l_dad


def inconsistency(local: Tensor, predicted: Tensor) -> Tensor:
    """s_IAD (n,): the mean over dimensions of (Z_l - Z_g)^2."""
    return (local - predicted).square().mean(dim=1)
