"""What a fit costs, worked out before an image is read: memory, size of the model, and time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ops.features.backbone import Backbone, LayerShape


@dataclass(frozen=True)
class FitSize:
    """The size of one detector's fit: input, features, images and workers."""

    size: int | tuple[int, int]
    """Side of the square input in pixels, or its width and height."""
    layers: list[LayerShape]
    """Shape (C, h, w) of each backbone layer's features of one image, the finest first."""
    images: int
    workers: int
    backbone: Backbone | None = None
    """The network itself, for a detector that trains a copy of it."""

    @property
    def device(self) -> torch.device:
        """Where the fit computes: where the network is."""
        return self.backbone.device if self.backbone else torch.device("cpu")

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height of the input in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def pixels(self) -> int:
        """Pixels of the input."""
        return self.sides[0] * self.sides[1]

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a worker's images, in 16 bits, which a trained detector keeps in the node."""
        return self.images_per_worker * 2 * 3 * self.pixels

    @property
    def channels(self) -> int:
        """Channels of all layers together."""
        return sum(channels for channels, _, _ in self.layers)

    @property
    def positions(self) -> int:
        """Positions (h * w) of the finest layer."""
        return self.layers[0][1] * self.layers[0][2]

    @property
    def images_per_worker(self) -> int:
        """The largest number of images that one worker gets."""
        return -(-self.images // self.workers)


@dataclass(frozen=True)
class ResourceEstimate:
    """What the fit of one detector and its model take."""

    vectors: int
    """Number of feature vectors of all images."""
    kept: int
    """Number of these vectors that the detector keeps."""
    fit_bytes: int
    """Memory of each worker of the fit, without the backbone's."""
    score_bytes: int
    """Memory of each worker that scores, without the backbone's."""
    model_bytes: int
    """What the detector adds to the size of the model folder."""
    remedy: str
    """The settings that lower the memory, as a clause for an error message."""
    fit_host_bytes: int = 0
    """The part of `fit_bytes` that a fit on a GPU leaves in the memory of its node."""
    gpu_scratch: int = 0
    """Memory of a GPU that each search takes while it runs, for all detectors that are loaded."""

    @property
    def fit_gpu_bytes(self) -> int:
        """Memory that a fit on a GPU takes of it, without the backbone's."""
        return self.fit_bytes - self.fit_host_bytes


class TimingProbe(NamedTuple):
    """A small sample of what `Detector.fit` computes, to be timed before the fit."""

    work: Callable[[], object]
    times: float
    """How many times as long the whole fit takes on each worker."""
