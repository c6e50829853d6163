"""How fast networks alone run, by precision and batch: what the whole chain is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import nn

from tests.bench.gpu.bundle import SIZE
from tests.bench.gpu.ceilings import allow_tf32
from tests.bench.gpu.part import Check, Figure

#: Precision -> type of weights and activations, and whether TF32 is allowed.
PRECISIONS = {
    "float32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
}


def plain_network(name: str, layers: list[str]) -> nn.Module:
    """A torchvision network up to some layers, with random weights, channels last."""
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = get_model(name, weights=None).eval().requires_grad_(False)
    return create_feature_extractor(network, layers).to(memory_format=torch.channels_last)


def timm_network() -> nn.Module | None:
    """EfficientNet-lite0 up to the stage of stride 16; None without timm."""
    try:
        import timm
    except ImportError:
        return None
    made = timm.create_model(
        "tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=(2, 3)
    )
    return made.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def networks(check: Check) -> Iterator[tuple[str, nn.Module]]:
    """The networks that are timed; large ones on a GPU only."""
    if check.cuda:
        yield "Wide-ResNet-50", plain_network("wide_resnet50_2", ["layer2", "layer3"])
    yield "SqueezeNet", plain_network("squeezenet1_1", ["features.7", "features.10"])
    if other := timm_network():
        yield "EfficientNet-lite0 of timm", other


@torch.inference_mode()
def run(check: Check) -> Iterator[Figure]:
    """Images a second of each network, precision and batch."""
    for name, network in networks(check):
        for precision, (kind, tf32) in PRECISIONS.items():
            if not check.cuda and precision not in {"float32", "bfloat16"}:
                continue
            for batch in check.size((64, 32, 128, 256), (2,)):
                what = f"{name}, {precision}, batch {batch}"
                if not check.left(4):
                    yield Figure(what, note="no time left")
                    continue
                allow_tf32(tf32)
                model = network.to(check.device, kind)
                images = torch.rand(batch, 3, SIZE, SIZE, device=check.device).to(kind)
                images = images.contiguous(memory_format=torch.channels_last)
                seconds = check.seconds(lambda: model(images))  # noqa: B023
                yield Figure(what, batch / seconds, "images/s")
        network.to(torch.float32)
    allow_tf32(False)
