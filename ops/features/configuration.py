"""What a library says of a network: how pixels are normalised, input size, weights and licence."""

from __future__ import annotations

from dataclasses import dataclass

#: The licence of weights whose copies must carry its text, as timm names it.
DINOV3 = "dinov3-license"


@dataclass(frozen=True)
class Configuration:
    """The configuration of a network with its pretrained weights."""

    library: str
    """torchvision or timm."""
    version: str
    """Of the library."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Of each channel of pixels in [0, 1]; subtracted before the network. Default: ImageNet's."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel; divided by after the mean is subtracted."""
    size: int = 224
    """Side of the square images that it was trained on, in pixels."""
    weights: str = ""
    """The weights that were asked for, or the library's first; empty if it has none."""
    licence: str = ""
    """Licence of these weights; empty if the library does not say, as for those of a file."""

    @property
    def binds_copies(self) -> bool:
        """Whether copies of the weights must carry the text of their licence."""
        return self.licence == DINOV3
