"""A model in the object store: the driver reads it once, workers fetch tensors as needed."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from torch import Tensor

from ops.archives.views import product_of
from ops.detectors.model_card import ModelCard
from ops.detectors.model_folder import Model, read_card
from ops.detectors.model_tensors import read_backbone, read_detectors
from ops.images.inspection import InspectionMask
from ops.images.inspection_files import read_masks
from ops.storage import files, paths
from pipelines.cluster.answers import answered

_PUT = 600.0  # seconds for the tensors of one detector, also if the store must spill others


@dataclass(frozen=True)
class SharedModel:
    """A model's card and masks, and references to its tensors: small enough for every task."""

    card: ModelCard
    backbone: Any  # ray.ObjectRef of a dict of tensors
    detectors: dict[str, Any]  # references to dicts of tensors, by file
    bytes_of_backbone: int = 0
    bytes_of_detectors: tuple[int, ...] = ()
    masks: dict[str, InspectionMask] = field(default_factory=dict)
    """Inspection masks by detector."""
    members: tuple[SharedModel, ...] = ()
    """Of an ensemble, which has no tensors of its own."""

    @classmethod
    def put(cls, model: Model) -> SharedModel:
        """Store a model's tensors: one object for the backbone, and one for each detector."""
        if model.members:
            return cls._of(model.card, map(cls.put, model.members))
        return cls._put(model.card, model.backbone, model.detectors.items(), model.masks)

    @classmethod
    def read(cls, location: str, products: Collection[str]) -> SharedModel:
        """Store the tensors of a model folder for some products, reading one detector at a time.

        Raises UserError if tensors do not match the hashes in the card.
        """
        card = read_card(location)
        if card.members:
            folders = [files.join(location, paths.member(n)) for n in range(len(card.members))]
            return cls._of(card, (cls.read(folder, products) for folder in folders))
        detectors = read_detectors(location, card, products)
        chosen = [name for name in card.masks if product_of(name, card.views) in products]
        masks = read_masks(location, card.masks, chosen)
        return cls._put(card, read_backbone(location, card), detectors, masks)

    @classmethod
    def _of(cls, card: ModelCard, members: Iterable[SharedModel]) -> SharedModel:
        """An ensemble, which holds the backbones of its members and shares a cache among them."""
        stored = tuple(members)
        of_members = (member.bytes_of_detectors for member in stored)
        sizes = tuple(map(sum, itertools.zip_longest(*of_members, fillvalue=0)))
        backbones = sum(member.bytes_of_backbone for member in stored)
        # All members have the same masks.
        return cls(card, None, {}, backbones, sizes, stored[0].masks, stored)

    @classmethod
    def _put(
        cls,
        card: ModelCard,
        backbone: dict[str, Tensor],
        detectors: Iterable[tuple[str, dict[str, Tensor]]],
        masks: dict[str, InspectionMask],
    ) -> SharedModel:
        references, sizes = {}, []
        for file, tensors in detectors:
            references[file] = put(tensors)
            sizes.append(_bytes(tensors))
        return cls(card, put(backbone), references, _bytes(backbone), tuple(sizes), masks)

    def of_backbone(self) -> dict[str, Tensor]:
        """The backbone's tensors."""
        return _fetch(self.backbone)

    def of_product(self, product: str) -> dict[str, Tensor]:
        """One detector's tensors."""
        return _fetch(self.detectors[self.card.products[product].file])


def put(tensors: dict[str, Tensor]) -> Any:
    """Put tensors into the object store; a reference. Raises Stalled if it does not take them."""
    return answered(lambda: ray.put(tensors), _PUT, "room in its object store")


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _fetch(reference: Any) -> dict[str, Tensor]:
    # Tensors from the store share its read-only memory, which torch must not write to.
    return {name: tensor.clone() for name, tensor in ray.get(reference).items()}
