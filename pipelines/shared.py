"""A model in the object store: read once on the driver, fetched by each worker when needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from torch import Tensor

from ops.model import Model, ModelCard


@dataclass(frozen=True)
class SharedModel:
    """A model's card, and references to its tensors. Small, so it travels with every task."""

    card: ModelCard
    backbone: Any  # ray.ObjectRef of a dict of tensors
    detectors: dict[str, Any]  # by file

    @classmethod
    def put(cls, model: Model) -> SharedModel:
        """Store a model's tensors, one object for the backbone and one per detector."""
        detectors = {file: ray.put(tensors) for file, tensors in model.detectors.items()}
        return cls(model.card, ray.put(model.backbone), detectors)

    def of_backbone(self) -> dict[str, Tensor]:
        """The backbone's tensors."""
        return _owned(self.backbone)

    def of_product(self, product: str) -> dict[str, Tensor]:
        """One detector's tensors."""
        return _owned(self.detectors[self.card.products[product].file])


def _owned(reference: Any) -> dict[str, Tensor]:
    # What comes out of the store is read-only memory, which torch must not be given to keep.
    return {name: tensor.clone() for name, tensor in ray.get(reference).items()}
