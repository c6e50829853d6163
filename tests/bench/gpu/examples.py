"""Whether every detector gives on the device the scores and maps that it gave on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ops.detectors.detector import settings_from
from ops.detectors.registry import detector_class
from ops.features.backbone import Backbone, BackboneSettings
from tests.bench.gpu.bundle import thinned
from tests.bench.gpu.part import Check, Figure

#: Largest difference to the CPU, relative to the largest score or map value.
LIMIT, OF_FLOWS = 1e-4, 1e-3
FLOWS = {"differnet", "fastflow", "cflow", "csflow", "ssnf", "glance"}


def run(check: Check) -> Iterator[Figure]:
    """Each example: scores, maps, order of scores, and the same bits in another batch."""
    images = check.bundle.images().to(check.device)
    for example in check.bundle.examples():
        if not check.left(8):
            yield Figure(example.name, note="no time left")
            continue
        kind = detector_class(example.method)
        settings = BackboneSettings("squeezenet1_1", example.layers, check.bundle.weights)
        backbone = Backbone(settings, device=check.device)
        detector = kind(settings_from(kind.Settings, example.settings), backbone)
        detector.load_state(example.state())
        batch = images[example.scored]
        found, (image, maps) = detector.score(batch), example.scores()
        limit = OF_FLOWS if example.method in FLOWS else LIMIT
        thin = thinned(found.map)
        for what, here, there in (("scores", found.image, image), ("maps", thin, maps)):
            away = float((here.cpu() - there).abs().max() / there.abs().max())
            yield Figure(
                f"{example.name}: {what} against the CPU",
                away,
                "of the largest",
                f"limit {limit:g}",
                away <= limit,
            )
        same = bool((found.image.cpu().argsort() == image.argsort()).all())
        yield Figure(f"{example.name}: order of scores", right=same)
        alone = [detector.score(batch[i : i + 1]) for i in range(len(batch))]
        same = torch.equal(torch.cat([a.image for a in alone]), found.image)
        same &= torch.equal(torch.cat([a.map for a in alone]), found.map)
        yield Figure(f"{example.name}: same bits alone and in the batch", right=same)
        if check.left(4):
            seconds = check.seconds(lambda: detector.score(batch), 3) / len(batch)  # noqa: B023
            yield Figure(f"{example.name}: an image", seconds * 1e3, "ms")
