"""Partial convolutions (Liu et al., ECCV 2018): networks on images of which a part is hidden."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ops.errors import UserError

_WINDOWED = (nn.Conv2d, nn.MaxPool2d)
_POINTWISE = (nn.BatchNorm2d, nn.ReLU, nn.Dropout, nn.Identity)
_SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add)


class MaskedFeatures(NamedTuple):
    """Features (n, C, h, w), 0 where hidden, and their mask (n, 1, h, w): 1 = visible."""

    features: Tensor
    mask: Tensor

    @classmethod
    def of(cls, images: Tensor, mask: Tensor) -> MaskedFeatures:
        """Hide the pixels of images where the mask is 0, whatever their values."""
        return cls(images.masked_fill(mask == 0, 0), mask)

    def mean(self) -> Tensor:
        """The mean over visible positions (n, C); 0 if there is none."""
        count = self.mask.sum(dim=(2, 3)).clamp(min=1)
        return self.features.sum(dim=(2, 3)) / count


class MaskedInterpreter(fx.Interpreter, ABC):
    """Runs masked features through a network of convolutions, batch norms, ReLUs and max-pools.

    Batch norms use their running statistics: statistics of the batch would depend on hidden pixels
    or on the position of the mask.
    """

    @abstractmethod
    def windowed(self, module: nn.Conv2d | nn.MaxPool2d, inputs: Any) -> Any:
        """Apply a convolution or a max-pool."""

    @abstractmethod
    def pointwise(self, function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
        """Apply a function that treats every position of features (n, C, h, w) alone."""

    @abstractmethod
    def add(self, one: Any, other: Any) -> Any:
        """Add the branches of a residual block."""

    @abstractmethod
    def concatenate(self, branches: Sequence[Any]) -> Any:
        """Concatenate the channels of several branches."""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - as in the base
        """Run one module of the network."""
        module = self.fetch_attr(target)
        if isinstance(module, _WINDOWED):
            return self.windowed(module, args[0])
        return self.pointwise(lambda features: _apply_pointwise(module, features), args[0])

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - as in the base
        """Run a function that merges branches."""
        return self.concatenate(args[0]) if target is torch.cat else self.add(*args)


class PartialNetwork(MaskedInterpreter):
    """Runs a network with partial convolutions; `maps` holds the output of every node."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.maps: dict[str, MaskedFeatures] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and keep its output."""
        out = super().run_node(n)
        if isinstance(out, MaskedFeatures):
            self.maps[n.name] = out
        return out

    def windowed(self, module: nn.Conv2d | nn.MaxPool2d, inputs: MaskedFeatures) -> MaskedFeatures:
        """Apply a convolution or a max-pool with the module's own padding."""
        ceil_mode = bool(getattr(module, "ceil_mode", False))
        return partial_module(module, inputs, module.padding, ceil_mode)

    def pointwise(
        self, function: Callable[[Tensor], Tensor], inputs: MaskedFeatures
    ) -> MaskedFeatures:
        """Apply a function at visible positions; hidden ones stay 0."""
        return MaskedFeatures(function(inputs.features) * inputs.mask, inputs.mask)

    def add(self, one: MaskedFeatures, other: MaskedFeatures) -> MaskedFeatures:
        """Add branches. A position is visible if it is in either branch; the paper does not say."""
        return MaskedFeatures(one.features + other.features, one.mask.maximum(other.mask))

    def concatenate(self, branches: Sequence[MaskedFeatures]) -> MaskedFeatures:
        """Concatenate branches, with the mask of `add`."""
        mask = torch.stack([branch.mask for branch in branches]).amax(dim=0)
        return MaskedFeatures(torch.cat([branch.features for branch in branches], dim=1), mask)


def partial_module(
    module: nn.Conv2d | nn.MaxPool2d, inputs: MaskedFeatures, padding: Any, ceil_mode: bool = False
) -> MaskedFeatures:
    """A partial convolution, or a max-pool of both features and mask."""
    if isinstance(module, nn.Conv2d):
        return _partial_convolution(module, inputs, padding)
    shape = (module.kernel_size, module.stride, padding, module.dilation, ceil_mode)
    return MaskedFeatures(F.max_pool2d(inputs.features, *shape), F.max_pool2d(inputs.mask, *shape))


def _partial_convolution(module: nn.Conv2d, inputs: MaskedFeatures, padding: Any) -> MaskedFeatures:
    """W x * sum(1) / sum(mask) + b where the kernel covers a visible position, 0 elsewhere.

    Padding counts as hidden. An output is visible if its kernel covers a visible position: the rule
    of Liu et al.; "Glancing at the Patch" states it for max-pools alone.
    """
    ones = inputs.mask.new_ones(1, 1, *module.kernel_size)
    count = F.conv2d(inputs.mask, ones, None, module.stride, padding, module.dilation)
    mask = (count > 0).to(count.dtype)
    out = F.conv2d(
        inputs.features, module.weight, None, module.stride, padding, module.dilation, module.groups
    )
    out = out * (mask * ones.numel() / count.clamp(min=1))
    if module.bias is not None:
        out = out + module.bias[:, None, None] * mask
    return MaskedFeatures(out, mask)


def _apply_pointwise(module: nn.Module, features: Tensor) -> Tensor:
    if isinstance(module, nn.BatchNorm2d):
        assert module.running_mean is not None
        norm = (module.running_mean, module.running_var, module.weight, module.bias)
        return F.batch_norm(features, *norm, training=False, eps=module.eps)
    # Never in place: another node may still need the input.
    return F.relu(features) if isinstance(module, nn.ReLU) else features


def check_network(network: fx.GraphModule, name: str) -> None:
    """Raises UserError that names the first layer of a network without a partial version."""
    for node in network.graph.nodes:
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            supported = isinstance(module, (*_WINDOWED, *_POINTWISE))
            kind = type(module).__name__
        elif node.op == "call_function":
            supported, kind = node.target in (*_SUMS, torch.cat), str(node.target)
        else:
            supported, kind = node.op in {"placeholder", "output"}, node.op
        if not supported:
            raise UserError(
                f"{name} contains {kind}, which cannot ignore hidden pixels; choose a network of "
                "convolutions, batch norms, ReLUs and max-pools: alexnet, vgg, squeezenet, resnet"
            )
