"""Two processes against one, for the distributed coreset and for feature extraction."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ops.distributed import Distributed
from ops.search.coreset import greedy
from tests.bench import features
from tests.bench.measure import Row, Time


class Work(NamedTuple):
    """What is measured."""

    points: int
    picks: int
    images: int
    wide: bool
    """Extract with Wide-ResNet-50 instead of SqueezeNet."""


WORK = Work(400_000, 4_000, 64, wide=False)


def _program(
    rank: int, size: int, meeting: str, points: torch.Tensor, work: Work, out: str
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=size)
    group = Distributed()
    ids = torch.arange(rank, len(points), size)
    mine = points[ids]
    group.all_reduce(torch.zeros(1))
    start = time.perf_counter()
    coreset = greedy(mine, ids, work.picks, group)
    seconds = time.perf_counter() - start
    chosen = features.images()[rank : work.images : size]
    network = features.wide_resnet() if work.wide else features.backbone()
    list(features.extracted(chosen[:2], network))
    group.all_reduce(torch.zeros(1))
    start = time.perf_counter()
    list(features.extracted(chosen, network))
    group.all_reduce(torch.zeros(1))
    extraction = time.perf_counter() - start
    if rank == 0:
        torch.save([seconds, extraction, float(sum(coreset.ids)), float(coreset.rounds)], out)
    dist.destroy_process_group()


def rows(work: Work = WORK) -> Iterator[Row]:
    """Measured by wall clock, because CPU seconds of two processes would not show the gain."""
    points = features.projected(work.points)
    figures = {}
    for size in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            arguments = (size, f"{folder}/meeting", points, work, f"{folder}/out")
            mp.spawn(_program, arguments, nprocs=size)
            figures[size] = torch.load(f"{folder}/out", weights_only=True)
    same = figures[1][2] == figures[2][2]
    coreset = f"coreset, N = {work.points:,}, k = {work.picks:,}"
    extraction = f"extraction with {'Wide-ResNet-50' if work.wide else 'SqueezeNet'}"
    for number, what in enumerate((coreset, extraction)):
        one, two = figures[1][number], figures[2][number]
        note = f"one {one:.2f} s"
        if number == 0:
            note += f"; {figures[2][3]:.0f} rounds; same picks: {same}"
        yield Row(f"{what}: 2 workers against 1", f"{one / two:.2f} x", Time(0, two), "1.8 x", note)
