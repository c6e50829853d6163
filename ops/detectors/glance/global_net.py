"""Global-Net of Glance: what a patch should hold, foretold from all around it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ops.detectors.glance.local_net import LocalNet, linear
from ops.detectors.glance.partial_convolution import Partial, Seen, check
from ops.detectors.glance.sliding_windows import embedded

#: Windows of a picture that are hidden at once.
_AT_ONCE = {"cpu": 32, "cuda": 256}


class GlobalNet(nn.Module):
    """A classifier with partial convolutions, a mean over what is seen, and a linear layer.

    It begins with the classifier's weights and norms. No source gives its layers.
    """

    def __init__(self, network: fx.GraphModule, linear: nn.Linear) -> None:
        """`linear` reads the channels of all outputs of the network."""
        super().__init__()
        check(network, "the backbone")
        self.network, self.linear = network, linear

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Normalised images (n, 3, H, W), and where they are seen (n, 1, H, W) -> (n, dim)."""
        out: dict[str, Seen] = Partial(self.network).run(Seen.of(images, mask))
        return self._read([seen.mean() for seen in out.values()])

    def whole(self, image: Tensor) -> Partial:
        """What a normalised image (1, 3, H, W) gives with nothing hidden."""
        whole = Partial(self.network)
        whole.run(Seen(image, torch.ones_like(image[:, :1])))
        return whole

    def around(self, whole: Partial, top: Tensor, left: Tensor, patch: int) -> Tensor:
        """`forward` of one image that hides a window each time: (n, dim).

        Equal up to rounding, with `top` and `left` (n,) in pixels.
        """
        size = _AT_ONCE.get(top.device.type, 32)
        parts = zip(torch.split(top, size), torch.split(left, size), strict=True)
        found = [self._read(embedded(self.network, whole, *part, patch)) for part in parts]
        return torch.cat(found)

    def _read(self, means: list[Tensor]) -> Tensor:
        return torch.as_tensor(self.linear(torch.cat(means, dim=1)))


class Head(nn.Module):
    """The distortion head C: how clean a patch's descriptor is for its surroundings, as a logit."""

    def __init__(self, dim: int, width: int = 128) -> None:
        super().__init__()
        self.first = linear(3 * dim, width)
        self.second = linear(width, 1)

    def forward(self, local: Tensor, around: Tensor) -> Tensor:
        """(n, dim) twice -> (n,)."""
        both = torch.cat([local, around, (local - around).abs()], dim=1)
        return torch.as_tensor(self.second(F.relu(self.first(both)))[:, 0])


class Scene(NamedTuple):
    """Normalised images (n, 3, H, W), where a patch is hidden, that patch clean and stained."""

    images: Tensor
    mask: Tensor
    """(n, 1, H, W): 0 in the patch."""
    clean: Tensor
    """(n, 3, patch, patch)."""
    stained: Tensor


class Surroundings(nn.Module):
    """Global-Net and the distortion head, beside a Local-Net that learns no more."""

    def __init__(
        self, local: LocalNet, around: GlobalNet, head: Head, distortion: float = 1.0
    ) -> None:
        """`distortion` is the weight lambda_t."""
        super().__init__()
        self.local, self.around, self.head = local.requires_grad_(False), around, head
        self._distortion = distortion
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def forward(self, scene: Scene) -> Tensor:
        """Losses (n,): l_IAD of the clean patch, and lambda_t times l_DAD, clean and stained."""
        around = self.around(scene.images, scene.mask)
        with torch.no_grad():
            clean, stained = self.local(scene.clean), self.local(scene.stained)
        logits = self.head(torch.cat([clean, stained]), torch.cat([around, around]))
        # C is the probability of "clean", so that 1 - C grows with what is wrong; the sources
        # contradict each other here.
        losses = F.softplus(torch.cat([-logits[: len(clean)], logits[len(clean) :]]))
        distortion = losses.view(2, -1).mean(dim=0)
        return inconsistency(clean, around) + self._distortion * distortion


def inconsistency(local: Tensor, around: Tensor) -> Tensor:
    """s_IAD (n,): the mean over dimensions of (Z_l - Z_g)^2."""
    return (local - around).square().mean(dim=1)
