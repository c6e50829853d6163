"""Frozen feature extractors: torchvision classifiers without the layers behind the last used."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, fx, nn

from ops.errors import SettingError, UserError
from ops.features.blocks import block_of, in_blocks
from ops.features.precision import (
    Precision,
    arithmetic,
    dtype_of,
    lowered,
    missing_on,
    use_exact_arithmetic,
)
from ops.features.weights import fingerprint, load_weights

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

#: Channels, height and width (C, h, w) of the feature maps that a layer gives for one image.
LayerShape = tuple[int, int, int]
#: Images of a pass on a CPU in less than float32, whose kernels need them to gain anything.
_LOW_BLOCK = 8


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
    precision: Precision = "float32"
    """Arithmetic of the network. The others are faster on devices that have them, and round more:
    features differ by up to 2 %, so thresholds are calibrated with it. Features are handed on in
    float32."""
    emulate: bool = False
    """Score on devices without `precision` too: those without TF32 compute in float32, those
    without bfloat16 or float16 in software, which is slow. Otherwise they are refused."""
    block: int = 0
    """Images in a pass of the network, which is padded to it; rounding may depend on it. 0 = by the
    device: 32 on a GPU; on a CPU 1, and 8 in bfloat16 or float16."""

    def __post_init__(self) -> None:
        """Raises SettingError for an unknown precision or a block that is negative."""
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise SettingError(f"unknown precision {self.precision!r}; known: {known}")
        if self.block < 0:
            raise SettingError(f"block {self.block} must be 0 or a number of images")

    @property
    def emulated(self) -> BackboneSettings:
        """The same network on any device, for the shapes of its features."""
        return replace(self, emulate=True)


class Backbone(nn.Module):
    """A frozen feature extractor, always in eval mode.

    Features of an image do not depend on its batch, to the last bit, because every pass has the
    same shape: a block of images, padded (on a CPU one image, measured: 0 to 15 % slower than
    eight).
    """

    def __init__(
        self,
        settings: BackboneSettings,
        state: Mapping[str, Tensor] | None = None,
        device: str = "cpu",
    ) -> None:
        """Load the weights that `settings` name, or those in `state`, a result of `state()`.

        Raises SettingError if the network has no such layer.
        """
        # Imported here: it takes seconds, and most processes of a run build no network.
        from torchvision.models import feature_extraction, get_model  # noqa: PLC0415

        super().__init__()
        self.settings = settings
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
            use_exact_arithmetic()
        self.to(device)
        self.to(memory_format=torch.channels_last)
        low = dtype_of(settings.precision) != torch.float32
        #: What a pass runs. The network itself stays in float32, for its state and for copies.
        self._passes = lowered(copy.deepcopy(self._network), settings.precision) if low else None
        self._missing = missing_on(self.device, settings.precision)
        super().train(False)

    def train(self, mode: bool = True) -> Backbone:  # noqa: ARG002 - as in the base
        """Stay in eval mode: train() of an enclosing module must not change the batch norms."""
        return self

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.buffers()).device

    @property
    def block(self) -> int:
        """Images in a pass."""
        lowest = _LOW_BLOCK if self._passes is not None else 1
        return self.settings.block or max(block_of(self.device), lowest)

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

        Raises SettingError if a layer gives no feature maps, UserError if the device lacks the
        precision.
        """
        if self._missing and not self.settings.emulate:
            raise UserError(
                f"the model's features are computed in {self.settings.precision}, which "
                f"{self._missing} does not have; use another device, or fit the model again with "
                "--backbone.emulate true or another --backbone.precision"
            )
        return in_blocks(self._run_block, [images], self.block)

    def _run_block(self, batches: list[Tensor]) -> list[Tensor]:
        """Features of a full block of images."""
        (images,) = batches
        network = self._network if self._passes is None else self._passes
        images = self.normalised(images).to(dtype_of(self.settings.precision))
        with arithmetic(self.settings.precision, images.device):
            out = network(images.contiguous(memory_format=torch.channels_last))
        for layer in self.layers:
            if out[layer].dim() != 4:
                raise SettingError(
                    f"layer {layer!r} of {self.settings.name} gives {tuple(out[layer].shape[1:])} "
                    "per image; choose layers that give feature maps (channels, height, width)"
                )
        return [out[layer].float() for layer in self.layers]
