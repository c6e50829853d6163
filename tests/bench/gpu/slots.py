"""Whether an image has the same features, bit by bit, wherever it stands in whatever batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ops.features.backbone import Backbone, BackboneSettings
from ops.features.patch_features import embed
from tests.bench.gpu.part import Check, Figure


@torch.inference_mode()
def run(check: Check) -> Iterator[Figure]:
    """One image at several places of batches of several sizes."""
    wide = BackboneSettings("wide_resnet50_2", "layer2,layer3", "random")
    narrow = BackboneSettings("squeezenet1_1", "features.7,features.10", check.bundle.weights)
    images = check.bundle.images().to(check.device)
    for settings in check.size((wide, narrow), (narrow,)):
        backbone = Backbone(settings, device=check.device)
        for embedding in ("concat", "pooled"):
            expected = embed(backbone(images[:1]), embedding, 1024)[0]
            for batch in check.size((2, 32, 33, 64, 128), (2, 5)):
                others = images[torch.arange(batch) % len(images)].clone()
                wrong = []
                for slot in sorted({0, 7 % batch, 31 % batch, batch - 1}):
                    mixed = others.clone()
                    mixed[slot] = images[0]
                    found = embed(backbone(mixed), embedding, 1024)[slot]
                    if not torch.equal(found, expected):
                        wrong.append(slot)
                yield Figure(
                    f"{settings.name}, {embedding}: same bits in a batch of {batch}",
                    note=f"other bits in slots {wrong}" if wrong else "",
                    right=not wrong,
                )
