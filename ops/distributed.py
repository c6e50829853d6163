"""Collective operations of a fit: in a single process, or over torch.distributed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Reduction = Literal["sum", "min", "max"]


class Group(ABC):
    """Workers that run the same program, each on its own shard of the images.

    All workers must make the same calls in the same order. A tensor is on the CPU, or on every
    worker on its GPU; results are where the tensors are.
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
    """The ranks of the default process group of torch.distributed.

    Tensors on the CPU go over gloo. Tensors on a GPU go over nccl if the group was initialised with
    it (`backend`), and otherwise through the CPU.
    """

    def __init__(self) -> None:
        """All ranks must construct this after the process group was initialised."""
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._between_gpus = "cuda:nccl" in dist.get_backend_config()

    def _sent(self, tensor: Tensor) -> Tensor:
        """The tensor where the group can send it from, in one piece."""
        return (tensor if self._between_gpus else tensor.cpu()).contiguous()

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Pads every tensor to the longest, because all must have equal lengths."""
        length = torch.tensor([len(tensor)])
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length)
        longest = max(int(n) for n in lengths)
        sent = self._sent(tensor)
        padded = sent.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = sent
        out = [torch.empty_like(padded) for _ in range(self.size)]
        if longest:
            dist.all_gather(out, padded)
        return [rows[: int(n)].to(tensor.device) for rows, n in zip(out, lengths, strict=True)]

    def all_to_all(self, tensors: list[Tensor]) -> list[Tensor]:
        """Sends all tensors in one operation; each reaches only its rank."""
        lengths = torch.stack(self.all_gather(torch.tensor([len(tensor) for tensor in tensors])))
        received = lengths[:, self.rank].tolist()
        shape = tensors[self.rank].shape[1:]
        sizes = [length * shape.numel() for length in received]
        sent = self._sent(torch.cat([tensor.flatten() for tensor in tensors]))
        out = sent.new_empty(sum(sizes))
        counts = [tensor.numel() for tensor in tensors]
        dist.all_to_all_single(out, sent, sizes, counts)
        flat = torch.split(out.to(tensors[0].device), sizes)
        return [tensor.view(n, *shape) for tensor, n in zip(flat, received, strict=True)]

    def all_reduce(self, tensor: Tensor, reduction: Reduction = "sum") -> Tensor:
        """Reduces in one operation."""
        out = self._sent(tensor).clone()
        op = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
        dist.all_reduce(out, op[reduction])
        return out.to(tensor.device)

    def parallel(self, network: nn.Module) -> nn.Module:
        """Wraps it in DistributedDataParallel, which copies the weights of rank 0 to all ranks.

        Buffers are copied then, too. Only those of batch norms change in training; others are
        constants, such as permutations, and often larger than the gradients.
        """
        changing = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        return DistributedDataParallel(network, broadcast_buffers=changing)


def backend(gpus: float) -> str:
    """The backend of torch.distributed for workers with `gpus` GPUs each.

    nccl needs a whole GPU for each worker.
    """
    return "cpu:gloo,cuda:nccl" if gpus >= 1 else "gloo"
