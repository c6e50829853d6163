"""A backbone that computes the features of an image once, for all detectors that ask for them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from ops.features.backbone import Backbone, BackboneSettings

#: Bytes of features that are remembered.
_ROOM = 2**32


class RememberingBackbone(Backbone):
    """Remembers features of whole images that it is told of, and what they took to compute.

    Features of an image do not depend on its batch, so remembered ones are equal to the last bit.
    """

    def __init__(self, settings: BackboneSettings) -> None:
        """A backbone on the CPU that remembers nothing yet."""
        super().__init__(settings)
        self._known: set[bytes] = set()
        self._kept: dict[bytes, tuple[list[Tensor], float]] = {}
        self._room = _ROOM
        #: CPU seconds that were saved since it was set to 0.
        self.saved = 0.0

    def expect(self, images: Iterable[Tensor]) -> None:
        """Remember the features of these images (3, H, W) from now on."""
        self._known.update(_digest(image) for image in images)

    def forward(self, images: Tensor) -> list[Tensor]:
        """As the base class."""
        if images.requires_grad:
            return super().forward(images)
        with torch.inference_mode(False), torch.no_grad():
            rows = [self._of(image) for image in images]
            if rows:
                return [torch.cat(layer) for layer in zip(*rows, strict=True)]
        return super().forward(images)

    def _of(self, image: Tensor) -> list[Tensor]:
        digest = _digest(image)
        if digest in self._kept:
            features, seconds = self._kept[digest]
            self.saved += seconds
            return features
        start = time.process_time()
        features = super().forward(image[None].clone())
        size = sum(4 * layer.numel() for layer in features)
        if digest in self._known and size <= self._room:
            self._room -= size
            self._kept[digest] = features, time.process_time() - start
        return features


def _digest(image: Tensor) -> bytes:
    data = image.detach().contiguous().numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()
