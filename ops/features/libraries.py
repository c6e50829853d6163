"""The libraries of networks, by the names of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from ops.features.configuration import Configuration
from ops.features.timm_networks import Timm
from ops.features.torchvision_networks import Torchvision


class Library(Protocol):
    """Makes networks, and loads their weights. Names are those of `BackboneSettings`."""

    name: str

    def configuration(self, network: str, weights: str) -> Configuration:
        """What the library says of a network with some weights, which may be a file's.

        Raises SettingError for an unknown network.
        """

    def new(self, network: str) -> nn.Module:
        """The whole network, with weights drawn from torch's generator."""

    def known_weights(self, network: str) -> list[str]:
        """Names of its pretrained weights."""

    def pretrained(self, network: str, weights: str) -> dict[str, Tensor]:
        """The state dict of one of them, downloaded if needed. Raises Unavailable."""

    def load(self, network: nn.Module, state: dict[str, Tensor], name: str) -> None:
        """Load the state dict of a whole network."""

    def cut(self, network: nn.Module, name: str, layers: Sequence[str]) -> nn.Module:
        """The network up to the last of some layers: images -> features of each, by name.

        It may change the network that it is given. Raises SettingError for unknown layers.
        """


def library_of(network: str) -> Library:
    """The library that a network is from: timm for timm/NAME, otherwise torchvision."""
    return Timm() if network.startswith("timm/") else Torchvision()
