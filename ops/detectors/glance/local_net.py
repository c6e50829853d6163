"""Local-Net of Glance: a light network on patches, taught by a classifier that knows the world."""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.distributed import Alone, Group
from ops.errors import UserError
from ops.features.backbone import Backbone

Correlation = Literal["features", "samples", "raw"]
_SLOPE = 5e-3
#: A block of convolution and pool leaves something worth pooling again of no less than this.
_LEAST = 9


class LocalNet(nn.Module):
    """Patches (n, 3, patch, patch), normalised, to descriptors (n, dim).

    Blocks of a 5 x 5 convolution and a pool by 2, then one convolution over all that is left. No
    source gives the layers; these are those of "Uninformed Students" (Bergmann et al., CVPR 2020),
    whose losses have the same form. For 64 pixels: 60-30-26-13-9-4-1.
    """

    def __init__(self, patch: int, width: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        sizes, channels = [patch], [3]
        while sizes[-1] >= _LEAST:
            sizes.append((sizes[-1] - 4) // 2)
            channels.append(width if len(sizes) < 4 else 2 * width)
        pairs = itertools.pairwise(channels)
        self.blocks = nn.ModuleList(_convolution(a, b, 5) for a, b in pairs)
        self.last = _convolution(channels[-1], 2 * width, sizes[-1])
        self.linear = _convolution(2 * width, dim, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """(n, 3, patch, patch) -> (n, dim)."""
        return self._slid(patches, 2**16)[:, :, 0, 0]

    def dense(self, images: Tensor, stride: int) -> Tensor:
        """(B, 3, H, W) -> (B, dim, h, w): `forward` of a patch every `stride` pixels, at once."""
        height, width = (1 + (side - self.patch) // stride for side in images.shape[2:])
        return self._slid(images, stride)[:, :, :height, :width]

    @torch.no_grad()
    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Shift and divide all descriptors by these (dim,) from now on.

        No source has it. Distillation leaves them any scale; so the two losses that follow, and
        all dimensions, count alike.
        """
        weight, bias = self.linear.weight, self.linear.bias
        assert bias is not None
        weight.div_(std.to(weight).view(-1, 1, 1, 1))
        bias.sub_(mean.to(bias)).div_(std.to(bias))

    def _slid(self, x: Tensor, stride: int) -> Tensor:
        # Pools keep their stride while windows stay on their grid; later ones look at every cell,
        # and what follows them looks at cells as far apart as it would have found them.
        step = spread = 1
        for block in self.blocks:
            x = _convolved(block, x, spread)
            if stride % (2 * step) == 0:
                x = F.max_pool2d(x, 2)
                step *= 2
            else:
                x = F.max_pool2d(x, 2, stride=1, dilation=spread)
                spread *= 2
        x = _convolved(self.last, x, spread)
        between = min(stride // step, max(x.shape[2:]))
        return torch.as_tensor(self.linear(x[:, :, ::between, ::between]))


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    made: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel)  # type: ignore[no-untyped-call]
    return made


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Without weights, for `initialise` to draw."""
    made: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    return made


def _convolved(convolution: nn.Module, x: Tensor, spread: int) -> Tensor:
    assert isinstance(convolution, nn.Conv2d)
    x = F.conv2d(x, convolution.weight, convolution.bias, dilation=spread)
    return F.leaky_relu(x, _SLOPE)


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Weights of layers that were made without any; global generators stay untouched."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(module.weight, math.sqrt(5), generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


@torch.no_grad()
def taught(teacher: Backbone, patches: Tensor) -> Tensor:
    """Patches (n, 3, patch, patch) in [0, 1] -> the teacher's layers, mean over space (n, D)."""
    layers = teacher(patches.to(teacher.device))
    return torch.cat([layer.mean(dim=(2, 3)) for layer in layers], dim=1)


def channels_taught(teacher: Backbone, patch: int) -> int:
    """D. Raises UserError if the teacher's pools leave nothing of a patch."""
    try:
        return taught(teacher, torch.zeros(1, 3, patch, patch)).shape[1]
    except RuntimeError as error:
        raise UserError(
            f"a patch of {patch} pixels is too small for layers {','.join(teacher.layers)} of "
            f"{teacher.settings.name}; choose a larger --glance.patch or earlier layers"
        ) from error


class Lesson(NamedTuple):
    """Patches (n, 3, patch, patch), normalised, and what the teacher says of them (n, D)."""

    patches: Tensor
    taught: Tensor


class Distillation(nn.Module):
    """Local-Net with the linear decoder that its teacher's features are read by.

    Teacher features are shifted by `mean` and divided by `std` (D,), which change nothing unset.
    """

    def __init__(
        self,
        local: LocalNet,
        dim: int,
        taught: int,
        weights: tuple[float, float],
        kind: Correlation,
    ) -> None:
        """`weights` are those of distillation and compactness, lambda_k and lambda_c."""
        super().__init__()
        self.local = local
        self.decoder = linear(dim, taught)
        self.group: Group = Alone()
        self._weights, self._kind = weights, kind
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(taught))
        self.register_buffer("std", torch.ones(taught))

    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """By the teacher's features on patches of the good images (D,)."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, lesson: Lesson) -> Tensor:
        """Losses (n,): lambda_k |D(L(p)) - R(p)|^2 + lambda_c l_c.

        Of the squared distance the mean over dimensions is taken, so that the weights mean the
        same for any teacher. Compactness is one number for the whole step, over all workers.
        """
        found = self.local(lesson.patches)
        taught = (lesson.taught - self.mean) / self.std
        distance = (self.decoder(found) - taught).square().mean(dim=1)
        return torch.as_tensor(
            self._weights[0] * distance + self._weights[1] * self._compactness(found)
        )

    def _compactness(self, found: Tensor) -> Tensor:
        """Its value; its gradient is such that those of all workers add up to that of the step.

        Descriptors of the others are constants here, as ours are there.
        """
        device, group = found.device, self.group
        parts = [part.to(device) for part in group.all_gather(found.detach().cpu())]
        parts[group.rank] = found
        together = torch.cat(parts)
        value = compactness(together, self._kind)
        share = len(together) / max(1, len(found))
        return value.detach() + share * (value - value.detach())


def compactness(descriptors: Tensor, kind: Correlation) -> Tensor:
    """How much descriptors (n, dim) repeat themselves: mean of squared off-diagonal correlations.

    No source says which matrix: "features" takes correlations between dimensions, "samples"
    between descriptors; "raw" is the plain mean between dimensions, as the formula has it.
    """
    rows = descriptors if kind == "samples" else descriptors.T
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows / (rows.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    matrix = rows @ rows.T / rows.shape[1]
    off = matrix - torch.diag(matrix.diagonal())
    total = off.sum() if kind == "raw" else off.square().sum()
    return total / max(1, len(rows) * (len(rows) - 1))
