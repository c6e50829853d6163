"""PatchCore's images a second with each backbone of the presets, and the network's share.

`python -m tests.bench backbones` takes some minutes on one thread. Weights are random where they
are not at hand, which changes no time of a network. Banks have 5,000 vectors of ten images.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ops.detectors.detector import Checkpoint
from ops.detectors.image_batches import to_images
from ops.detectors.patchcore import PatchCore
from ops.distributed import Alone
from ops.features.backbone import Backbone
from ops.images.read_images import Read
from tests.bench import features
from tests.bench.measure import Row, timed
from tests.bench.shots import preset_request

#: Presets of deploy/methods, and weights where they are at hand.
PRESETS = {
    "patchcore-squeezenet": features.WEIGHTS,
    "efficientnet-lite0": features.EFFICIENTNET,
    "patchcore-10": None,
    "dinov2-small": None,
}
_FIT, _SCORED, _BANK = 10, 8, 5_000


def rows() -> Iterator[Row]:
    """For each preset the time of an image without reading and drawing, and that of the network."""
    for preset, file in PRESETS.items():
        yield _row(preset, str(file) if file and file.exists() else "random")


def _row(preset: str, weights: str) -> Row:
    size = {"patchcore.coreset_ratio": "1.0", "patchcore.max_bank_size": str(_BANK)}
    request = preset_request(preset, {"backbone.weights": weights, **size})
    backbone = Backbone(request.backbone)
    detector = PatchCore(request.settings, backbone)
    read = Read(request.input, request.decode, request.fetch)
    paths = features.images()[: _FIT + _SCORED]
    images = [to_images(read(features.rows_of([p])), request.input, "cpu") for p in paths]
    detector.add_images(torch.cat(images[:_FIT]), torch.arange(_FIT))
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    unseen = images[_FIT:]
    detector.score(unseen[0])  # tables that are made once
    whole = timed(lambda: [detector.score(image) for image in unseen]).times(1 / _SCORED)
    with torch.inference_mode():
        network = timed(lambda: [backbone(image) for image in unseen]).times(1 / _SCORED)
    return Row(
        f"{preset}: {request.backbone.name}, {'x'.join(map(str, request.input.sides))} px",
        f"{1 / whole.cpu:.1f} images/s",
        whole,
        note=f"network {network.cpu / whole.cpu:.0%}; bank of {len(detector.bank):,}",
    )
