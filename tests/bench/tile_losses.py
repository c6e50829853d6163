"""The loss of held-out good images while a flow is fitted, from which epochs are chosen."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from ops.detectors.cflow import CFlow
from ops.detectors.detector import Detector
from ops.detectors.trained_on_features import TrainedOnFeatures
from ops.flows.conditional_flow import Positions
from tests.bench.tile_images import Images


class Shown:
    """The progress of a fit: prints the mean loss of held-out images after each epoch of a flow."""

    def __init__(self, what: str, detector: Detector, held_out: Images) -> None:
        """Nothing is shown of detectors that are no flows, or without held-out images."""
        self._what, self._detector, self._held_out = what, detector, held_out
        #: CPU seconds that it took.
        self.seconds = 0.0

    @torch.no_grad()
    def __call__(self, _stage: str, done: int, total: int, _failed: int = 0, /) -> None:
        """After an epoch."""
        detector = self._detector
        if not isinstance(detector, TrainedOnFeatures) or not self._held_out.pixels:
            return
        assert detector.network is not None
        start = time.process_time()
        detector.network.eval()
        losses = [
            float(detector.network(_inputs(detector, image)).mean())
            for _, image in self._held_out.batches(count=1)
        ]
        detector.network.train()
        self.seconds += time.process_time() - start
        loss = statistics.mean(losses)
        print(f"{self._what}: epoch {done} of {total}, held-out loss {loss:.6g}", flush=True)


def _inputs(detector: TrainedOnFeatures, image: Tensor) -> Any:
    """What the flow of a detector takes of an image (1, 3, H, W), all of it and unchanged."""
    maps = detector.features(image)
    if not isinstance(detector, CFlow):
        return maps
    return [
        Positions(layer.flatten(2).transpose(1, 2), torch.arange(layer[0, 0].numel())[None])
        for layer in maps
    ]
