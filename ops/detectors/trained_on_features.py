"""The base of detectors that train a network on the backbone's feature maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ops.detectors.fit_cost import FitSize
from ops.detectors.trained import Trained, TrainingSettings
from ops.detectors.uint16_images import from_uint16, to_uint16
from ops.distributed import Group
from ops.features.backbone import Backbone, LayerShape
from ops.features.whitening import (
    SAMPLE,
    Covariance,
    Whitening,
    broadcast_whitening,
    sample_ids,
)

#: Share of the mean variance that is added to all variances where features are whitened.
_SHRINKAGE = 0.01
#: Map ceiling as a multiple of the largest value on training images. A flow gives larger values to
#: unseen good images, and still larger ones to defects.
_CEILING_FACTOR = 8
#: Bytes of feature maps that a worker keeps on the backbone's device from the first epoch on; maps
#: beyond them are computed again in every epoch.
_KEPT = 2**30
#: Names of tensors of the state, before the number of the map.
_WHITENING = "whitening."


@dataclass(frozen=True)
class FeatureSettings(TrainingSettings):
    """Settings of detectors that train on feature maps."""

    whiten: bool = False
    """Whiten the channels of each feature map by their covariance over good images, before the
    network (our choice; the papers do not). Few couplings do not learn within few epochs how
    channels correlate; on whitened features a flow starts as a Gaussian with full covariance."""


class TrainedOnFeatures(Trained):
    """Keeps the pixels of images, which are smaller than their features.

    The network MUST have a buffer `shapes` (layers, 3): the shapes of its input maps.
    """

    settings: FeatureSettings

    def __init__(self, settings: FeatureSettings, backbone: Backbone) -> None:
        """A detector without a network, until `fit` or `load_state`."""
        super().__init__(settings, backbone)
        self._shapes: list[LayerShape] = []
        self._whitenings: list[Whitening] = []  # one for each map; none if they are not whitened
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

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps (n, C, h, w) of images (n, 3, H, W) on the backbone's device."""
        return list(self.backbone(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """The network's input: feature maps of images (n, 3, H, W), whitened if that is set."""
        maps = self.feature_maps(images.to(self.backbone.device))
        if not self._whitenings:
            return maps
        return [_whitened(*pair) for pair in zip(maps, self._whitenings, strict=True)]

    def prepare(self, network: nn.Module, group: Group) -> None:  # noqa: ARG002 - as in the base
        """Whiten by the features of as many images as give a sample of vectors. Collective."""
        if not self.settings.whiten:
            return
        vectors = min(height * width for _, height, width in self._shapes)
        rows = torch.tensor(sorted(self._samples), dtype=torch.int64)
        chosen = sample_ids(rows, group, -(-SAMPLE // vectors)).tolist()
        own = [self._samples[row] for row in chosen if row in self._samples]
        found = [Covariance() for _ in self._shapes]
        self._whitenings = []
        for sample in own:
            maps = self.features(self.images([sample]))
            for covariance, layer in zip(found, maps, strict=True):
                covariance.add(layer[0].flatten(1).T)
        for covariance, (channels, _, _) in zip(found, self._shapes, strict=True):
            of_all = covariance.over_all(channels, group)
            whitening = of_all.whitening(_SHRINKAGE, symmetric=True) if group.rank == 0 else None
            shared = broadcast_whitening(whitening, channels, group, f"{self.name}.whiten = false")
            assert shared
            self._whitenings.append(shared.to(self.backbone.device))

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

    def state(self) -> dict[str, Tensor]:
        """The network's weights, the map ceiling, and mean and matrix (C + 1, C) of whitenings."""
        tensors = {
            f"{_WHITENING}{number}": torch.vstack(tuple(whitening)).cpu()
            for number, whitening in enumerate(self._whitenings)
        }
        return super().state() | tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the weights and the shapes of feature maps that they fit."""
        self._shapes = [(c, h, w) for c, h, w in state["shapes"].tolist()]
        if self.settings.whiten:
            rows = [state[f"{_WHITENING}{number}"] for number in range(len(self._shapes))]
            whitenings = [Whitening(each[0].clone(), each[1:].clone()) for each in rows]
            self._whitenings = [each.to(self.backbone.device) for each in whitenings]
        super().load_state({k: v for k, v in state.items() if not k.startswith(_WHITENING)})


def _whitened(maps: Tensor, whitening: Whitening) -> Tensor:
    """Maps (n, C, h, w) whose channels are uncorrelated, of mean 0 and variance 1."""
    vectors = (maps.flatten(2) - whitening.mean[:, None]).transpose(1, 2)
    return (vectors @ whitening.matrix).transpose(1, 2).reshape(maps.shape)


def whitening_bytes(settings: FeatureSettings, shapes: Iterable[LayerShape]) -> int:
    """Bytes of the whitenings of feature maps."""
    return sum(4 * (c + 1) * c for c, _, _ in shapes) if settings.whiten else 0


def kept_bytes(fit_size: FitSize, elements: int) -> int:
    """Bytes of feature maps, of `elements` numbers an image, that a worker of a fit keeps."""
    return min(_KEPT, 4 * elements * fit_size.images_per_worker)
