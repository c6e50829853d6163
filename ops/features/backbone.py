"""Frozen feature extractors: torchvision classifiers without the layers behind the last used."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ops.errors import SettingError
from ops.features.weights import fingerprint, load_weights

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

#: Channels, height and width (C, h, w) of the feature maps that a layer gives for one image.
LayerShape = tuple[int, int, int]


@dataclass(frozen=True)
class BackboneSettings:
    """Which pretrained network extracts features, and from which of its layers."""

    name: str = "wide_resnet50_2"
    """Name of a torchvision classification model."""
    layers: str = "layer2,layer3"
    """Layers whose outputs are the features: comma-separated, in the order of the network."""
    weights: str = "IMAGENET1K_V1"
    """A torchvision weights name, a path or s3:// URI of a .safetensors or .pth file, or random."""
    seed: int = 0
    """Seed for `weights = random`."""


class Backbone(nn.Module):
    """A frozen feature extractor, always in eval mode.

    Features of an image do not depend on its batch, to the last bit. Convolution kernels choose
    their order of summation by the shape of the batch, so every pass has the same shape: one image
    on a CPU (measured: 0 to 15 % slower than eight), a padded block of `block` images on a GPU.
    """

    def __init__(
        self,
        settings: BackboneSettings,
        state: Mapping[str, Tensor] | None = None,
        device: str = "cpu",
        block: int = 32,
    ) -> None:
        """Load the weights that `settings` name, or those in `state`, a result of `state()`.

        Raises SettingError if the network has no such layer.
        """
        # Imported here: it takes seconds, and most processes of a run build no network.
        from torchvision.models import feature_extraction, get_model  # noqa: PLC0415

        super().__init__()
        self.settings = settings
        self.block = block
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision warns about how old models initialise
            network = get_model(settings.name, weights=None)
        if state is None:
            network.load_state_dict(load_weights(settings.weights, settings.name, settings.seed))
        layers = [layer.strip() for layer in settings.layers.split(",")]
        known = feature_extraction.get_graph_node_names(network)[1]
        for layer in layers:
            if not any(node == layer or node.startswith(f"{layer}.") for node in known):
                raise SettingError(
                    f"{settings.name} has no layer {layer!r}; known: {', '.join(known[1:-1])}"
                )
        self.layers = layers
        self._network = feature_extraction.create_feature_extractor(
            network.eval(), return_nodes=layers
        )
        if state is not None:
            self._network.load_state_dict(dict(state))
        self._network.requires_grad_(False)
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        if device.startswith("cuda"):
            # TF32 rounds to ten bits of mantissa, so scores would differ from those of a CPU.
            torch.backends.cudnn.allow_tf32 = False
        self.to(device)
        self.to(memory_format=torch.channels_last)
        super().train(False)

    def train(self, mode: bool = True) -> Backbone:  # noqa: ARG002 - as in the base
        """Stay in eval mode: train() of an enclosing module must not change the batch norms."""
        return self

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.buffers()).device

    def state(self) -> dict[str, Tensor]:
        """All tensors of the network up to the last layer used, by name."""
        return {name: t.contiguous() for name, t in self._network.state_dict().items()}

    def fingerprint(self) -> str:
        """SHA-256 of `state()`."""
        return fingerprint(self.state())

    def trainable_copy(self) -> fx.GraphModule:
        """A copy of the network with trainable weights; its input is `normalised` images."""
        network: fx.GraphModule = copy.deepcopy(self._network)
        return network.requires_grad_(True)

    def normalised(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], normalised by ImageNet's mean and deviation."""
        return (images - self._mean) / self._std

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) of each layer for images (B, 3, H, W) in [0, 1].

        Raises SettingError if a layer gives no feature maps.
        """
        block = 1 if images.device.type == "cpu" else self.block
        passes = [self._run_block(chunk, block) for chunk in torch.split(images, block)]
        return [torch.cat(maps) if len(maps) > 1 else maps[0] for maps in zip(*passes, strict=True)]

    def _run_block(self, images: Tensor, block: int) -> list[Tensor]:
        """Features of at most `block` images, padded with black ones to exactly `block`."""
        count = len(images)
        if count < block:
            images = torch.cat([images, images.new_zeros(block - count, *images.shape[1:])])
        images = self.normalised(images)
        out = self._network(images.contiguous(memory_format=torch.channels_last))
        for layer in self.layers:
            if out[layer].dim() != 4:
                raise SettingError(
                    f"layer {layer!r} of {self.settings.name} gives {tuple(out[layer].shape[1:])} "
                    "per image; choose layers that give feature maps (channels, height, width)"
                )
        return [out[layer][:count] for layer in self.layers]
