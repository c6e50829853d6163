"""Frozen feature extractors: pretrained networks without the layers behind the last used."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, fx, nn

from ops.errors import SettingError, UserError
from ops.features.blocks import block_of, in_blocks
from ops.features.configuration import Configuration
from ops.features.libraries import library_of
from ops.features.precision import (
    Precision,
    arithmetic,
    dtype_of,
    lowered,
    missing_on,
    use_exact_arithmetic,
)
from ops.features.weights import fingerprint, load_weights

#: Channels, height and width (C, h, w) of the feature maps that a layer gives for one image.
LayerShape = tuple[int, int, int]
#: Images of a pass on a CPU in less than float32, whose kernels need them to gain anything.
_LOW_BLOCK = 8
#: Networks of convolutions halve an image five times at most.
_STRIDE = 32


@dataclass(frozen=True)
class BackboneSettings:
    """Which pretrained network extracts features, and from which of its layers."""

    name: str = "wide_resnet50_2"
    """Name of a torchvision classification model, or `timm/` and the name of a model of timm, such
    as timm/tf_efficientnet_lite0; a tag may follow, as in timm/resnet18.a1_in1k. timm is an
    optional library: pip install .[timm]."""
    layers: str = "layer2,layer3"
    """Layers whose outputs are the features: comma-separated, the finest first. Of vision
    transformers these are blocks, such as blocks.5, and norm, the last block normalised (timm); or
    encoder.layers.encoder_layer_5 and encoder.ln (torchvision)."""
    weights: str = ""
    """A weights name of torchvision, a tag of timm, a path or s3:// URI of a .safetensors or .pth
    file, or random. Default: IMAGENET1K_V1 of torchvision, the tag in `name` or the first of timm.
    """
    seed: int = 0
    """Seed for `weights = random`."""
    mean: str = ""
    """Mean of each channel of pixels between 0 and 1, which the network expects to be subtracted:
    three comma-separated numbers. Default: of the network's configuration, ImageNet's for
    torchvision."""
    std: str = ""
    """Standard deviation of each channel, by which pixels are divided then; as `mean`."""
    licence: str = ""
    """Path or s3:// URI of the licence of the weights, which the model folder then carries.
    Weights of DINOv3 need it: their licence asks for it wherever they are copied to."""
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
        _numbers("mean", self.mean)
        if min(_numbers("std", self.std), default=1.0) <= 0:
            raise SettingError(f"std {self.std!r} must hold numbers above 0")

    @property
    def emulated(self) -> BackboneSettings:
        """The same network on any device, for the shapes of its features."""
        return replace(self, emulate=True)

    @property
    def configuration(self) -> Configuration:
        """What the network's library says of it. Raises SettingError for an unknown network."""
        return library_of(self.name).configuration(self.name, self.weights)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the three channels."""
        mean, std = _numbers("mean", self.mean), _numbers("std", self.std)
        if not (mean and std):
            found = self.configuration
            return mean or found.mean, std or found.std
        return mean, std

    def configured(self) -> BackboneSettings:
        """With weights, mean and deviation of the configuration where they are not set.

        Raises SettingError if there are no weights, or if their licence must be named.
        """
        found = self.configuration
        if not found.weights:
            raise SettingError(
                f"{self.name} has no pretrained weights; give --backbone.weights the path or "
                "s3:// URI of a .safetensors or .pth file, or `random` for a trial"
            )
        if found.binds_copies and not self.licence:
            raise SettingError(
                f"the weights of {self.name} are under the DINOv3 License, whose text must go with "
                "every copy of them, as a model folder is; give --backbone.licence its file"
            )
        mean, std = (",".join(map(repr, values)) for values in (found.mean, found.std))
        return replace(self, weights=found.weights, mean=self.mean or mean, std=self.std or std)


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
        super().__init__()
        self.settings = settings
        library = library_of(settings.name)
        with torch.random.fork_rng(devices=[]):
            network = library.new(settings.name)
        if state is None:
            settings = settings.configured()
            weights = load_weights(settings.weights, settings.name, settings.seed)
            library.load(network, weights, settings.name)
        self.layers = [layer.strip() for layer in settings.layers.split(",")]
        self._network = library.cut(network, settings.name, self.layers)
        if state is not None:
            self._network.load_state_dict(dict(state))
        self._network.requires_grad_(False)
        self._mean: Tensor
        self._std: Tensor
        for name, values in zip(("_mean", "_std"), settings.normalisation, strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
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
    def step(self) -> int:
        """What sides of inputs should be multiples of: the side of a transformer's patches, which
        must divide them, or the coarsest stride of networks of convolutions.
        """
        return int(getattr(self._network, "patch", _STRIDE))

    @property
    def takes_one_size(self) -> bool:
        """Whether inputs must have the size of the configuration."""
        return bool(getattr(self._network, "takes_one_size", False))

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
        """A copy of the network with trainable weights; its input is `normalised` images.

        Raises UserError if the network is no graph, as transformers are not.
        """
        network = copy.deepcopy(self._network)
        if not isinstance(network, fx.GraphModule):
            raise UserError(
                f"{self.settings.name} is a vision transformer, which cannot be trained on hidden "
                "pixels; choose a network of convolutions: alexnet, vgg, squeezenet, resnet"
            )
        return network.requires_grad_(True)

    def normalised(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], normalised by the network's mean and deviation."""
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


def _numbers(setting: str, text: str) -> tuple[float, ...]:
    """Three comma-separated numbers; none if the text is empty. Raises SettingError."""
    try:
        numbers = tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError:
        numbers = (math.nan,)
    if len(numbers) not in {0, 3} or not all(map(math.isfinite, numbers)):
        raise SettingError(
            f"{setting} {text!r} must be three comma-separated numbers, such as 0.5,0.5,0.5"
        )
    return numbers
