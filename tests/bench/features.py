"""Input of the benchmarks: SqueezeNet features of the magnetic tiles, else of synthetic images."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from ops.archives.fetch import FetchSettings
from ops.detectors.image_batches import to_images
from ops.features.backbone import Backbone, BackboneSettings
from ops.features.patch_features import embed
from ops.images.decode import DecodeSettings
from ops.images.read_images import Read
from ops.images.resize import InputSettings
from ops.storage import uris
from tests.conftest import DATA, draw_archive

LAYERS = "features.7,features.9,features.10"
INPUT = InputSettings(size=231)
PATCHES = 784  # of an image of that size
WEIGHTS = DATA / "weights" / "squeezenet1_1_imagenet.safetensors"
EFFICIENTNET = DATA / "weights" / "tf_efficientnet_lite0_imagenet.safetensors"


@functools.cache
def images() -> list[Path]:
    """Paths of good images, sorted by name."""
    tiles = sorted((DATA / "mtd" / "MT_Free" / "Imgs").glob("*.jpg"))
    if tiles:
        return tiles
    folder = Path(tempfile.mkdtemp(prefix="nightloupe-bench-"))
    return sorted(draw_archive(folder, train=300, test=1, size=256).glob("*/train/good/*.png"))


def source() -> str:
    """Which images and weights are used, for the table."""
    return "magnetic tiles" if WEIGHTS.exists() else "drawn products, random weights"


def network(name: str, layers: str) -> Backbone:
    """A network on the CPU, with ImageNet weights where they are at hand."""
    known = {"squeezenet1_1": WEIGHTS, "timm/tf_efficientnet_lite0": EFFICIENTNET}
    path = known.get(name)
    weights = str(path) if path and path.exists() else "random"
    return Backbone(BackboneSettings(name, layers, weights))


@functools.cache
def backbone(layers: str = LAYERS) -> Backbone:
    """SqueezeNet 1.1 on the CPU."""
    return network("squeezenet1_1", layers)


def rows_of(paths: list[Path]) -> pa.Table:
    """Rows of an inventory for some images."""
    count = len(paths)
    return pa.table(
        {
            "uri": [uris.make(str(path)) for path in paths],
            "image_id": [f"{number:032x}" for number in range(count)],
            "product": ["tile"] * count,
            "member": pa.array([None] * count, pa.int64()),
            "bytes": [path.stat().st_size for path in paths],
            "problem": pa.array([None] * count, pa.string()),
        }
    )


def reader() -> Read:
    """A reader of one image at a time, on one thread."""
    return Read(INPUT, DecodeSettings(), FetchSettings(), threads=1)


@functools.cache
def wide_resnet() -> Backbone:
    """Wide-ResNet-50 of random weights, as fast as with any others, on the CPU."""
    return Backbone(BackboneSettings("wide_resnet50_2", "layer2,layer3", "random"))


def extracted(
    paths: list[Path], network: Backbone | None = None, mirrored: tuple[int, ...] = ()
) -> Iterator[Tensor]:
    """Patch vectors (n, d) of each image, mirrored along these axes of (B, C, H, W).

    SqueezeNet gives (784, 1024).
    """
    network = network or backbone()
    for path in paths:
        image = to_images(reader()(rows_of([path])), INPUT, "cpu").flip(mirrored)
        with torch.inference_mode():
            yield embed(network(image), "concat", 0).flatten(0, 2)


#: What an image is mirrored along, so that there are four times as many different ones.
_MIRRORED = ((), (3,), (2,), (2, 3))


@functools.cache
def projected(count: int) -> Tensor:
    """A random projection (count, 128) of the first `count` patches, mirrored images after all."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(1024, 128, generator=generator) / 128**0.5
    needed = -(-count // PATCHES)
    out = torch.empty(needed * PATCHES, 128)
    for first in range(0, needed, len(images())):
        mirrored = _MIRRORED[first // len(images()) % len(_MIRRORED)]
        chosen = images()[: needed - first]
        for number, vectors in enumerate(extracted(chosen, mirrored=mirrored), start=first):
            out[number * PATCHES : (number + 1) * PATCHES] = vectors @ matrix
    return out[:count]
