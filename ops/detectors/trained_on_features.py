"""Detectors that train a network on the maps of a backbone's layers: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ops.detectors.trained import Trained, TrainingSettings
from ops.detectors.uint16_images import from_uint16, to_uint16
from ops.features.backbone import Backbone, LayerShape

#: Unseen good images lie farther out than those that a flow was trained on, and defects farther
#: still: maps get so many times the room that the latter need.
_ROOM = 8


class TrainedOnFeatures(Trained):
    """Keeps of images the pixels, which are smaller than their features.

    The network has a buffer `shapes`, of the maps that it is for.
    """

    def __init__(self, settings: TrainingSettings, backbone: Backbone) -> None:
        """Untrained."""
        super().__init__(settings, backbone)
        self._shapes: list[LayerShape] = []

    @abstractmethod
    def network_for(self, shapes: list[LayerShape]) -> nn.Module:
        """An untrained network for maps of these shapes."""

    def new_network(self) -> nn.Module:
        """For the maps of this fit's images, or of the state that was loaded."""
        if not self._shapes:
            maps = self.features(torch.zeros(1, 3, *self._size))
            self._shapes = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]
        return self.network_for(self._shapes)

    def sample(self, image: Tensor, row: int) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """The image."""
        return to_uint16(image)

    def images(self, samples: Sequence[Tensor]) -> Tensor:
        """(n, 3, H, W) of samples, on the CPU."""
        none = torch.empty(0, 3, *self._size)
        return torch.cat([none, *(from_uint16(s)[None] for s in samples)])

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """Maps of images (n, 3, H, W)."""
        return list(self.backbone(images.to(self.backbone.device)))

    def inputs(self, samples: list[tuple[int, Tensor]], epoch: int) -> list[Tensor]:  # noqa: ARG002
        """Feature maps; the same in each epoch."""
        return self.features(self.images([sample for _, sample in samples]))

    def map_ceiling(self) -> float:
        """Of some of the good images, with room."""
        return _ROOM * super().map_ceiling()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights over, and the shapes that they are for."""
        self._shapes = [(c, h, w) for c, h, w in state["shapes"].tolist()]
        super().load_state(state)
