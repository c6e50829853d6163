"""Local-Net of Glance: a light network on patches, distilled from a pretrained classifier."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.distributed import Alone, Group
from ops.errors import UserError
from ops.features.backbone import Backbone

_NEGATIVE_SLOPE = 5e-3
#: Feature maps with a smaller side get no further block of convolution and max-pool.
_MIN_BLOCK_INPUT = 9


class LocalNet(nn.Module):
    """Maps normalised patches (n, 3, patch, patch) to descriptors (n, dim).

    Blocks of a 5 x 5 convolution and a 2 x 2 max-pool, then one convolution over the whole
    remaining map. The paper does not give the layers; these are those of "Uninformed Students"
    (Bergmann et al., CVPR 2020), whose losses have the same form. Sides of the maps for a patch of
    64 pixels: 60-30-26-13-9-4-1.
    """

    def __init__(self, patch: int, width: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        sizes, channels = [patch], [3]
        while sizes[-1] >= _MIN_BLOCK_INPUT:
            sizes.append((sizes[-1] - 4) // 2)
            channels.append(width if len(sizes) < 4 else 2 * width)
        pairs = itertools.pairwise(channels)
        self.blocks = nn.ModuleList(_empty_convolution(a, b, 5) for a, b in pairs)
        self.last = _empty_convolution(channels[-1], 2 * width, sizes[-1])
        self.linear = _empty_convolution(2 * width, dim, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """(n, 3, patch, patch) -> (n, dim)."""
        return self._sliding_forward(patches, 2**16)[:, :, 0, 0]

    def dense(self, images: Tensor, stride: int) -> Tensor:
        """(B, 3, H, W) -> (B, dim, h, w): `forward` of a patch every `stride` pixels, in one pass.

        Layers share what overlapping patches have in common.
        """
        height, width = (1 + (side - self.patch) // stride for side in images.shape[2:])
        return self._sliding_forward(images, stride)[:, :, :height, :width]

    @torch.no_grad()
    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Fold a shift by `mean` and a division by `std` (dim,) into the last layer.

        Not in the paper. Distillation leaves the scale of descriptors open; standardised
        descriptors give both losses of Global-Net, and all dimensions, equal weight.
        """
        weight, bias = self.linear.weight, self.linear.bias
        assert bias is not None
        weight.div_(std.to(weight).view(-1, 1, 1, 1))
        bias.sub_(mean.to(bias)).div_(std.to(bias))

    def _sliding_forward(self, x: Tensor, stride: int) -> Tensor:
        # Max-pools keep their stride as long as it divides the stride of the patches. Later pools
        # get stride 1, and the layers behind them a dilation instead.
        step = dilation = 1
        for block in self.blocks:
            x = _convolve(block, x, dilation)
            if stride % (2 * step) == 0:
                x = F.max_pool2d(x, 2)
                step *= 2
            else:
                x = F.max_pool2d(x, 2, stride=1, dilation=dilation)
                dilation *= 2
        x = _convolve(self.last, x, dilation)
        between = min(stride // step, max(x.shape[2:]))
        return torch.as_tensor(self.linear(x[:, :, ::between, ::between]))


def _empty_convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel)  # type: ignore[no-untyped-call]
    return layer


def empty_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer without weights, which `initialise` draws."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    return layer


def _convolve(convolution: nn.Module, x: Tensor, dilation: int) -> Tensor:
    assert isinstance(convolution, nn.Conv2d)
    x = F.conv2d(x, convolution.weight, convolution.bias, dilation=dilation)
    return F.leaky_relu(x, _NEGATIVE_SLOPE)


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of convolutions and linear layers from `generator`; biases become 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(module.weight, math.sqrt(5), generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


@torch.no_grad()
def teacher_features(teacher: Backbone, patches: Tensor) -> Tensor:
    """Patches (n, 3, patch, patch) in [0, 1] -> spatial means of the teacher's layers (n, D)."""
    layers = teacher(patches.to(teacher.device))
    return torch.cat([layer.mean(dim=(2, 3)) for layer in layers], dim=1)


def teacher_channels(teacher: Backbone, patch: int) -> int:
    """D of `teacher_features`. Raises UserError if a patch is too small for the teacher."""
    try:
        return teacher_features(teacher, torch.zeros(1, 3, patch, patch)).shape[1]
    except RuntimeError as error:
        raise UserError(
            f"a patch of {patch} pixels is too small for layers {','.join(teacher.layers)} of "
            f"{teacher.settings.name}; choose a larger --glance.patch or earlier layers"
        ) from error


class LocalBatch(NamedTuple):
    """Normalised patches (n, 3, patch, patch), and the teacher's features of them (n, D)."""

    patches: Tensor
    teacher_features: Tensor


class Distillation(nn.Module):
    """Trains Local-Net: a linear decoder predicts the teacher's features from its descriptors.

    Teacher features are standardised by the buffers `mean` and `std` (D,), initially 0 and 1.
    """

    def __init__(
        self, local: LocalNet, dim: int, teacher_channels: int, weights: tuple[float, float]
    ) -> None:
        """`weights` are lambda_k of distillation and lambda_c of compactness."""
        super().__init__()
        self.local = local
        self.decoder = empty_linear(dim, teacher_channels)
        self.group: Group = Alone()
        self._weights = weights
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(teacher_channels))
        self.register_buffer("std", torch.ones(teacher_channels))

    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and standard deviation (D,) of the teacher's features on good patches."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, batch: LocalBatch) -> Tensor:
        """Losses (n,): lambda_k |D(L(p)) - R(p)|^2 + lambda_c l_c.

        The squared distance is averaged over dimensions, so that the weights mean the same for any
        teacher. Compactness l_c is one number for the step, over all workers.
        """
        descriptors = self.local(batch.patches)
        target = (batch.teacher_features - self.mean) / self.std
        distance = (self.decoder(descriptors) - target).square().mean(dim=1)
        return torch.as_tensor(
            self._weights[0] * distance + self._weights[1] * self._compactness(descriptors)
        )

    def _compactness(self, descriptors: Tensor) -> Tensor:
        """Compactness of the step's descriptors on all workers.

        Descriptors of other workers are constants here. The gradient is scaled so that the sum of
        all workers' gradients is the gradient of the step.
        """
        device, group = descriptors.device, self.group
        parts = [part.to(device) for part in group.all_gather(descriptors.detach().cpu())]
        parts[group.rank] = descriptors
        everyone = torch.cat(parts)
        value = compactness(everyone)
        share = len(everyone) / max(1, len(descriptors))
        return value.detach() + share * (value - value.detach())


def compactness(descriptors: Tensor) -> Tensor:
    """Mean squared correlation between different dimensions of descriptors (n, dim).

    Our reading: no source says between what the correlations are, and the paper's formula does not
    square them.
    """
    rows = descriptors.T
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows / (rows.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    matrix = rows @ rows.T / rows.shape[1]
    off_diagonal = matrix - torch.diag(matrix.diagonal())
    return off_diagonal.square().sum() / max(1, len(rows) * (len(rows) - 1))
