"""The base of detectors that train a network on the backbone's feature maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ops.detectors.fit_cost import FitSize
from ops.detectors.trained import Trained, TrainingSettings
from ops.detectors.uint16_images import from_uint16, to_uint16
from ops.distributed import Group
from ops.features.backbone import Backbone, LayerShape

#: Map ceiling as a multiple of the largest value on training images. A flow gives larger values to
#: unseen good images, and still larger ones to defects.
_CEILING_FACTOR = 8
#: Bytes of feature maps that a worker keeps on the backbone's device from the first epoch on; maps
#: beyond them are computed again in every epoch.
_KEPT = 2**30


class TrainedOnFeatures(Trained):
    """Keeps the pixels of images, which are smaller than their features.

    The network MUST have a buffer `shapes` (layers, 3): the shapes of its input maps.
    """

    def __init__(self, settings: TrainingSettings, backbone: Backbone) -> None:
        """A detector without a network, until `fit` or `load_state`."""
        super().__init__(settings, backbone)
        self._shapes: list[LayerShape] = []
        self._kept: dict[int, list[Tensor]] = {}  # feature maps (1, C, h, w) by row
        self._room = _KEPT

    @abstractmethod
    def network_for(self, shapes: list[LayerShape]) -> nn.Module:
        """A network with initial weights for feature maps of these shapes."""

    def new_network(self) -> nn.Module:
        """A network for the feature maps of this fit's images, or of the loaded state."""
        if not self._shapes:
            maps = self.features(torch.zeros(1, 3, *self._size))
            self._shapes = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]
        return self.network_for(self._shapes)

    def sample(self, image: Tensor, row: int) -> Tensor:  # noqa: ARG002 - as in the base
        """The image in 16 bits."""
        return to_uint16(image)

    def images(self, samples: Sequence[Tensor]) -> Tensor:
        """Samples as a batch of images (n, 3, H, W) on the CPU."""
        empty = torch.empty(0, 3, *self._size)
        return torch.cat([empty, *(from_uint16(s)[None] for s in samples)])

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps (n, C, h, w) of images (n, 3, H, W)."""
        return list(self.backbone(images.to(self.backbone.device)))

    def inputs(self, samples: list[tuple[int, Tensor]], epoch: int) -> list[Tensor]:  # noqa: ARG002
        """Feature maps of samples; they are the same in each epoch, so as many as fit are kept."""
        missing = [(row, sample) for row, sample in samples if row not in self._kept]
        new = [row for row, _ in missing]
        computed: list[Tensor] = []
        if missing or not samples:
            computed = self.features(self.images([sample for _, sample in missing]))
        by_row = {row: [maps[i : i + 1] for maps in computed] for i, row in enumerate(new)}
        for row, maps in by_row.items():
            self._keep(row, maps)
        if len(new) == len(samples):
            return computed
        chosen = [by_row.get(row) or self._kept[row] for row, _ in samples]
        # As the backbone joins its passes, so that memory formats and the rounding of what follows
        # are those of maps that were computed.
        return [torch.cat(layer) for layer in zip(*chosen, strict=True)]

    def _keep(self, row: int, maps: list[Tensor]) -> None:
        """Keep the feature maps of an image if there is room."""
        size = sum(layer.numel() * layer.element_size() for layer in maps)
        if size <= self._room:
            self._room -= size
            self._kept[row] = [layer.clone() for layer in maps]

    def finish(self, group: Group) -> None:
        """Forget the maps that were kept, then compute the map ceiling. Collective."""
        self._kept.clear()
        super().finish(group)

    @property
    def block(self) -> int:
        """As many images as the backbone takes in a pass."""
        return self.backbone.block

    def map_ceiling(self) -> float:
        """A multiple of the largest map value of a few good images."""
        return _CEILING_FACTOR * super().map_ceiling()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the weights and the shapes of feature maps that they fit."""
        self._shapes = [(c, h, w) for c, h, w in state["shapes"].tolist()]
        super().load_state(state)


def kept_bytes(fit_size: FitSize, elements: int) -> int:
    """Bytes of feature maps, of `elements` numbers an image, that a worker of a fit keeps."""
    return min(_KEPT, 4 * elements * fit_size.images_per_worker)
