"""A group of threads, so that several ranks run in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ops.distributed import Group, Reduction

T = TypeVar("T")


class Meeting:
    """Where the threads of a group exchange tensors."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=30)
        self.table: list[Any] = [None] * size


class Threads(Group):
    """One rank of a group of threads."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size = rank, meeting.size
        self._meeting = meeting

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self._meeting.table[self.rank] = tensor.clone()
        self._meeting.barrier.wait()
        out = [part.clone() for part in self._meeting.table]
        self._meeting.barrier.wait()  # nobody puts down the next tensor before all have read this
        return out

    def all_to_all(self, tensors: list[Tensor]) -> list[Tensor]:
        self._meeting.table[self.rank] = tensors
        self._meeting.barrier.wait()
        out = [tensors[self.rank].clone() for tensors in self._meeting.table]
        self._meeting.barrier.wait()
        return out

    def all_reduce(self, tensor: Tensor, reduction: Reduction = "sum") -> Tensor:
        stacked = torch.stack(self.all_gather(tensor))
        if reduction == "sum":
            return stacked.sum(dim=0)
        return stacked.amin(dim=0) if reduction == "min" else stacked.amax(dim=0)

    def parallel(self, network: nn.Module) -> nn.Module:
        def average(weight: nn.Parameter) -> None:
            weight.grad = self.all_reduce(weight.grad) / self.size

        for weight in network.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(average)
        return network


def together(size: int, program: Callable[[Group], T]) -> list[T]:
    """What a program returns on each rank of a group; an error on one rank ends all of them."""
    meeting = Meeting(size)

    def run(rank: int) -> T:
        try:
            return program(Threads(rank, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
        errors = [error for future in futures if (error := future.exception())]
    if errors:
        others = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
        raise (others or errors)[0]
    return [future.result() for future in futures]
