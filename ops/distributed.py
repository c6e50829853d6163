"""The tiny group that a fit is written against: alone, or a process group of torch.distributed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Reduction = Literal["sum", "min", "max"]


class Group(ABC):
    """Workers that run the same program on their own shards.

    Every worker must make the same calls in the same order. Tensors live on the CPU.
    """

    rank: int
    size: int

    @abstractmethod
    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in order of rank; first dimensions may differ, also be zero."""

    @abstractmethod
    def all_to_all(self, tensors: list[Tensor]) -> list[Tensor]:
        """One tensor for each rank out, one from each rank in; first dimensions may differ.

        The others are those of what this rank keeps for itself, of which there may be none.
        """

    @abstractmethod
    def all_reduce(self, tensor: Tensor, reduction: Reduction = "sum") -> Tensor:
        """Element-wise over all ranks; shapes must be equal."""

    @abstractmethod
    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, whose gradients are averaged over all ranks if its forward is called."""


class Alone(Group):
    """A group of one, for plain processes and tests."""

    rank = 0
    size = 1

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Only its own."""
        return [tensor]

    def all_to_all(self, tensors: list[Tensor]) -> list[Tensor]:
        """Its own."""
        return tensors

    def all_reduce(self, tensor: Tensor, reduction: Reduction = "sum") -> Tensor:  # noqa: ARG002
        """Itself."""
        return tensor.clone()

    def parallel(self, network: nn.Module) -> nn.Module:
        """Itself."""
        return network


class Distributed(Group):
    """The default process group of torch.distributed, spoken to through gloo on the CPU."""

    def __init__(self) -> None:
        """The process group must have been initialised; every rank must construct this."""
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        backend = dist.get_backend()
        own = backend != "gloo"
        self._group: Any = dist.new_group(backend="gloo") if own else None

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Gathered as bytes, padded to the longest, so that bits survive and lengths may differ."""
        length = torch.tensor([len(tensor)])
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self._group)
        longest = max(int(n) for n in lengths)
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        out = [torch.empty_like(padded) for _ in range(self.size)]
        if longest:
            dist.all_gather(out, padded, group=self._group)
        return [part[: int(n)] for part, n in zip(out, lengths, strict=True)]

    def all_to_all(self, tensors: list[Tensor]) -> list[Tensor]:
        """Sent in one piece, each part to its rank alone."""
        lengths = torch.stack(self.all_gather(torch.tensor([len(part) for part in tensors])))
        received = lengths[:, self.rank].tolist()
        shape = tensors[self.rank].shape[1:]
        sizes = [length * shape.numel() for length in received]
        out = tensors[0].new_empty(sum(sizes))
        sent = torch.cat([part.flatten() for part in tensors])
        counts = [part.numel() for part in tensors]
        dist.all_to_all_single(out, sent, sizes, counts, group=self._group)
        parts = torch.split(out, sizes)
        return [part.view(n, *shape) for part, n in zip(parts, received, strict=True)]

    def all_reduce(self, tensor: Tensor, reduction: Reduction = "sum") -> Tensor:
        """Through gloo."""
        out = tensor.clone()
        op = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
        dist.all_reduce(out, op[reduction], group=self._group)
        return out

    def parallel(self, network: nn.Module) -> nn.Module:
        """PyTorch's DistributedDataParallel, which gives every rank the weights of the first."""
        return DistributedDataParallel(network, process_group=self._group)
