"""Collective operations of a fit: in a single process, or over torch.distributed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Reduction = Literal["sum", "min", "max"]


class Group(ABC):
    """Workers that run the same program, each on its own shard of the images.

    All workers must make the same calls in the same order. Tensors are on the CPU.
    """

    rank: int
    size: int

    @abstractmethod
    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, in order of rank; first dimensions may differ and may be 0."""

    @abstractmethod
    def all_to_all(self, tensors: list[Tensor]) -> list[Tensor]:
        """Send one tensor to each rank and receive one from each; first dimensions may differ.

        All other dimensions must equal those of `tensors[rank]`, which may have no rows.
        """

    @abstractmethod
    def all_reduce(self, tensor: Tensor, reduction: Reduction = "sum") -> Tensor:
        """Reduce element-wise over all ranks; shapes must be equal."""

    @abstractmethod
    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, wrapped so that calls of its forward average gradients over all ranks."""


class Alone(Group):
    """A group of one worker, for single processes and tests."""

    rank = 0
    size = 1

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """A list of the tensor itself."""
        return [tensor]

    def all_to_all(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors themselves."""
        return tensors

    def all_reduce(self, tensor: Tensor, reduction: Reduction = "sum") -> Tensor:  # noqa: ARG002
        """A copy of the tensor."""
        return tensor.clone()

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network itself."""
        return network


class Distributed(Group):
    """The ranks of the default process group of torch.distributed, over gloo on the CPU."""

    def __init__(self) -> None:
        """All ranks must construct this after the process group was initialised."""
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        backend = dist.get_backend()
        self._group: Any = None if backend == "gloo" else dist.new_group(backend="gloo")

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Pads every tensor to the longest, because gloo needs equal lengths."""
        length = torch.tensor([len(tensor)])
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self._group)
        longest = max(int(n) for n in lengths)
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        out = [torch.empty_like(padded) for _ in range(self.size)]
        if longest:
            dist.all_gather(out, padded, group=self._group)
        return [rows[: int(n)] for rows, n in zip(out, lengths, strict=True)]

    def all_to_all(self, tensors: list[Tensor]) -> list[Tensor]:
        """Sends all tensors in one operation; each reaches only its rank."""
        lengths = torch.stack(self.all_gather(torch.tensor([len(tensor) for tensor in tensors])))
        received = lengths[:, self.rank].tolist()
        shape = tensors[self.rank].shape[1:]
        sizes = [length * shape.numel() for length in received]
        out = tensors[0].new_empty(sum(sizes))
        sent = torch.cat([tensor.flatten() for tensor in tensors])
        counts = [tensor.numel() for tensor in tensors]
        dist.all_to_all_single(out, sent, sizes, counts, group=self._group)
        flat = torch.split(out, sizes)
        return [tensor.view(n, *shape) for tensor, n in zip(flat, received, strict=True)]

    def all_reduce(self, tensor: Tensor, reduction: Reduction = "sum") -> Tensor:
        """Reduces over gloo."""
        out = tensor.clone()
        op = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
        dist.all_reduce(out, op[reduction], group=self._group)
        return out

    def parallel(self, network: nn.Module) -> nn.Module:
        """Wraps it in DistributedDataParallel, which copies the weights of rank 0 to all ranks."""
        return DistributedDataParallel(network, process_group=self._group)
