"""Partial convolutions (Liu et al., ECCV 2018): a network that sees only part of its picture."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ops.errors import UserError

_SLIDING = (nn.Conv2d, nn.MaxPool2d)
_CELLWISE = (nn.BatchNorm2d, nn.ReLU, nn.Dropout, nn.Identity)
_SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add)


class Seen(NamedTuple):
    """Features (n, C, h, w), 0 where nothing was seen, and 1 where something was (n, 1, h, w)."""

    features: Tensor
    mask: Tensor

    @classmethod
    def of(cls, images: Tensor, mask: Tensor) -> Seen:
        """Images of which only the pixels where the mask is 1 are seen, whatever the others are."""
        return cls(images.masked_fill(mask == 0, 0), mask)

    def mean(self) -> Tensor:
        """Over what was seen (n, C); 0 if nothing was."""
        count = self.mask.sum(dim=(2, 3)).clamp(min=1)
        return self.features.sum(dim=(2, 3)) / count


class Walk(fx.Interpreter, ABC):
    """Takes what is seen through a network of convolutions, batch norms, ReLUs and max-pools.

    The norms keep the statistics they came with: others would carry what is hidden, or where it
    lies, to every cell.
    """

    @abstractmethod
    def slide(self, module: nn.Conv2d | nn.MaxPool2d, seen: Any) -> Any:
        """What looks at a neighbourhood."""

    @abstractmethod
    def each(self, function: Callable[[Tensor], Tensor], seen: Any) -> Any:
        """What looks at one cell alone; features (n, C, h, w) to features."""

    @abstractmethod
    def add(self, one: Any, other: Any) -> Any:
        """The end of a residual branch."""

    @abstractmethod
    def join(self, parts: Sequence[Any]) -> Any:
        """Channels of several branches."""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - as there
        """One of the network's modules."""
        module = self.fetch_attr(target)
        if isinstance(module, _SLIDING):
            return self.slide(module, args[0])
        return self.each(lambda features: _cellwise(module, features), args[0])

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - as there
        """Where branches meet."""
        return self.join(args[0]) if target is torch.cat else self.add(*args)


class Partial(Walk):
    """Whole pictures, of which each hides what its mask says; `maps` keeps what nodes give."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.maps: dict[str, Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As there, and kept."""
        out = super().run_node(n)
        if isinstance(out, Seen):
            self.maps[n.name] = out
        return out

    def slide(self, module: nn.Conv2d | nn.MaxPool2d, seen: Seen) -> Seen:
        """With the padding that the module has."""
        return slide(module, seen, module.padding, bool(getattr(module, "ceil_mode", False)))

    def each(self, function: Callable[[Tensor], Tensor], seen: Seen) -> Seen:
        """What is not seen stays 0."""
        return Seen(function(seen.features) * seen.mask, seen.mask)

    def add(self, one: Seen, other: Seen) -> Seen:
        """No source says which mask; here a cell is seen if either branch saw something."""
        return Seen(one.features + other.features, one.mask.maximum(other.mask))

    def join(self, parts: Sequence[Seen]) -> Seen:
        """As for sums."""
        mask = torch.stack([part.mask for part in parts]).amax(dim=0)
        return Seen(torch.cat([part.features for part in parts], dim=1), mask)


def slide(
    module: nn.Conv2d | nn.MaxPool2d, seen: Seen, padding: Any, ceil_mode: bool = False
) -> Seen:
    """A partial convolution, or a max-pool of features and mask alike."""
    if isinstance(module, nn.Conv2d):
        return _partial_convolution(module, seen, padding)
    shape = (module.kernel_size, module.stride, padding, module.dilation, ceil_mode)
    return Seen(F.max_pool2d(seen.features, *shape), F.max_pool2d(seen.mask, *shape))


def _partial_convolution(module: nn.Conv2d, seen: Seen, padding: Any) -> Seen:
    """W x * sum(1) / sum(mask) + b where the window holds something seen, 0 elsewhere.

    Padding counts as hidden. A cell counts as seen if its window holds something seen: the rule
    of the equation's authors, as "Glancing at the Patch" says it for pools alone.
    """
    ones = seen.mask.new_ones(1, 1, *module.kernel_size)
    count = F.conv2d(seen.mask, ones, None, module.stride, padding, module.dilation)
    mask = (count > 0).to(count.dtype)
    out = F.conv2d(
        seen.features, module.weight, None, module.stride, padding, module.dilation, module.groups
    )
    out = out * (mask * ones.numel() / count.clamp(min=1))
    if module.bias is not None:
        out = out + module.bias[:, None, None] * mask
    return Seen(out, mask)


def _cellwise(module: nn.Module, features: Tensor) -> Tensor:
    if isinstance(module, nn.BatchNorm2d):
        assert module.running_mean is not None
        norm = (module.running_mean, module.running_var, module.weight, module.bias)
        return F.batch_norm(features, *norm, training=False, eps=module.eps)
    # A new tensor: what a node gave before may still be needed.
    return F.relu(features) if isinstance(module, nn.ReLU) else features


def check(network: fx.GraphModule, name: str) -> None:
    """Raises UserError if pixels cannot be hidden from a network, and names what spreads them."""
    for node in network.graph.nodes:
        if node.op == "call_module":
            part = network.get_submodule(str(node.target))
            known, kind = isinstance(part, (*_SLIDING, *_CELLWISE)), type(part).__name__
        elif node.op == "call_function":
            known, kind = node.target in (*_SUMS, torch.cat), str(node.target)
        else:
            known, kind = node.op in {"placeholder", "output"}, node.op
        if not known:
            raise UserError(
                f"{name} holds {kind}, from which pixels cannot be hidden; choose a network of "
                "convolutions, batch norms, ReLUs and max-pools: alexnet, vgg, squeezenet, resnet"
            )
