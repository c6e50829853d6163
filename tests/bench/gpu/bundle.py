"""The folder that the check is given: images, weights, and detectors fitted and scored on a CPU."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

SIZE = 224
CONTENT, WEIGHTS = "content.json", "squeezenet1_1.safetensors"


@dataclass(frozen=True)
class Example:
    """A detector that was fitted on a CPU, with what it gave there for some images."""

    name: str
    method: str
    settings: dict[str, Any]
    layers: str
    scored: list[int]
    """Numbers of the images that were scored."""
    folder: Path

    def state(self) -> dict[str, Tensor]:
        """The detector's tensors."""
        return load_file(self.folder / f"{self.name}.state.safetensors")

    def scores(self) -> tuple[Tensor, Tensor]:
        """Scores (n,) and thinned maps of the CPU."""
        scores = load_file(self.folder / f"{self.name}.scores.safetensors")
        return scores["image"], scores["map"]


def thinned(maps: Tensor) -> Tensor:
    """Maps (n, h, w), of which large ones keep every fourth row and column."""
    return (maps[:, ::4, ::4] if maps.shape[1] > 100 else maps).cpu().contiguous()


@dataclass(frozen=True)
class Bundle:
    """Access to the folder."""

    folder: Path

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """Which images and detectors there are, and where they come from."""
        return dict(json.loads((self.folder / CONTENT).read_text()))

    @functools.cached_property
    def files(self) -> list[bytes]:
        """The image files."""
        return [(self.folder / "images" / name).read_bytes() for name in self.content["images"]]

    @functools.cached_property
    def pixels(self) -> list[Any]:
        """Images as arrays of uint8, resized to the input."""
        from ops.images.decode import DecodeSettings, decode
        from ops.images.resize import InputSettings, resize

        return [resize(decode(data, DecodeSettings()), InputSettings(SIZE)) for data in self.files]

    def images(self) -> Tensor:
        """All images (n, 3, SIZE, SIZE) in [0, 1], on the CPU."""
        arrays = [torch.from_numpy(array.copy()) for array in self.pixels]
        channels = [
            a.permute(2, 0, 1) if a.dim() == 3 else a[None].expand(3, -1, -1) for a in arrays
        ]
        return torch.stack(channels).float() / 255

    @property
    def weights(self) -> str:
        """Path of SqueezeNet's weights."""
        return str(self.folder / WEIGHTS)

    def examples(self) -> list[Example]:
        """The fitted detectors."""
        return [Example(**each, folder=self.folder) for each in self.content["examples"]]

    @functools.cached_property
    def patches(self) -> Tensor:
        """Patch vectors (n * 784, 640) of all images, by SqueezeNet on the CPU."""
        from ops.features.backbone import Backbone, BackboneSettings
        from ops.features.patch_features import embed

        settings = BackboneSettings("squeezenet1_1", "features.7,features.10", self.weights)
        backbone = Backbone(settings)
        with torch.inference_mode():
            maps = [embed(backbone(image[None]), "concat", 0) for image in self.images()]
        return torch.cat(maps).flatten(0, 2)
