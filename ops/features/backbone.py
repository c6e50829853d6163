"""Frozen torchvision classifiers, cut off behind the last layer that is looked at."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ops.errors import SettingError
from ops.features.weights import fingerprint, load_weights

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

#: Channels, height and width (C, h, w) of the feature maps that a layer gives for one image.
LayerShape = tuple[int, int, int]


@dataclass(frozen=True)
class BackboneSettings:
    """Which network looks at the images, and where."""

    name: str = "wide_resnet50_2"
    """Any classifier of torchvision's."""
    layers: str = "layer2,layer3"
    """Names of the layers whose output is used, comma-separated, in the order of the network."""
    weights: str = "IMAGENET1K_V1"
    """A weights name of torchvision's, a path or s3:// URI (.safetensors, .pth), or random."""
    seed: int = 0
    """Seed of random weights."""


class Backbone(nn.Module):
    """A frozen feature extractor, always in eval mode.

    An image's features are the same bits whatever batch it comes in: convolution kernels choose
    their summation order by the shape of a batch, so every pass has the same shape. On a CPU that
    is one image (measured: 0 to 15 % slower than eight); on a GPU a padded block of `block` images.
    """

    def __init__(
        self,
        settings: BackboneSettings,
        state: Mapping[str, Tensor] | None = None,
        device: str = "cpu",
        block: int = 32,
    ) -> None:
        """Load weights as `settings` say, or take `state`, which `state()` once returned."""
        super().__init__()
        self.settings = settings
        self.block = block
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchvision, on how old models initialise
            network = torchvision.models.get_model(settings.name, weights=None)
        if state is None:
            network.load_state_dict(load_weights(settings.weights, settings.name, settings.seed))
        layers = [layer.strip() for layer in settings.layers.split(",")]
        known = get_graph_node_names(network)[1]
        for layer in layers:
            if not any(node == layer or node.startswith(f"{layer}.") for node in known):
                raise SettingError(
                    f"{settings.name} has no layer {layer!r}; known: {', '.join(known[1:-1])}"
                )
        self.layers = layers
        self._network = create_feature_extractor(network.eval(), return_nodes=layers)
        if state is not None:
            self._network.load_state_dict(dict(state))
        self._network.requires_grad_(False)
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        if device.startswith("cuda"):
            # Ten bits of mantissa on one device and not on another: scores would tell them apart.
            torch.backends.cudnn.allow_tf32 = False
        self.to(device)
        self.to(memory_format=torch.channels_last)
        super().train(False)

    def train(self, mode: bool = True) -> Backbone:  # noqa: ARG002 - as in the base
        """Stay in eval mode: a wrapper's train() must not wake the batch norms."""
        return self

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.buffers()).device

    def state(self) -> dict[str, Tensor]:
        """All tensors up to the last layer used."""
        return {name: t.contiguous() for name, t in self._network.state_dict().items()}

    def fingerprint(self) -> str:
        """SHA-256 of `state()`."""
        return fingerprint(self.state())

    def copied(self) -> fx.GraphModule:
        """The network up to its last layer, with weights of its own; wants `normalised` images."""
        network: fx.GraphModule = copy.deepcopy(self._network)
        return network.requires_grad_(True)

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the network was trained on them."""
        return (images - self._mean) / self._std

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) of each layer for images (B, 3, H, W) in [0, 1]."""
        block = 1 if images.device.type == "cpu" else self.block
        passes = [self._pass(part, block) for part in torch.split(images, block)]
        return [torch.cat(maps) if len(maps) > 1 else maps[0] for maps in zip(*passes, strict=True)]

    def _pass(self, images: Tensor, block: int) -> list[Tensor]:
        count = len(images)
        if count < block:
            images = torch.cat([images, images.new_zeros(block - count, *images.shape[1:])])
        images = self.normalised(images)
        out = self._network(images.contiguous(memory_format=torch.channels_last))
        for layer in self.layers:
            if out[layer].dim() != 4:
                raise SettingError(
                    f"layer {layer!r} of {self.settings.name} gives {tuple(out[layer].shape[1:])} "
                    "per image; choose layers that give maps (channels, height, width)"
                )
        return [out[layer][:count] for layer in self.layers]
