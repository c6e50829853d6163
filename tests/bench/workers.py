"""Two processes against one, for the distributed coreset and for feature extraction."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ops.distributed import Distributed
from ops.search.coreset import greedy
from tests.bench import features
from tests.bench.measure import Row, Time

N, K, IMAGES = 400_000, 4_000, 64


def _program(rank: int, size: int, meeting: str, points: torch.Tensor, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=size)
    group = Distributed()
    ids = torch.arange(rank, len(points), size)
    mine = points[ids]
    group.all_reduce(torch.zeros(1))
    start = time.perf_counter()
    coreset = greedy(mine, ids, K, group)
    seconds = time.perf_counter() - start
    chosen = features.images()[rank:IMAGES:size]
    list(features.extracted(chosen[:2]))
    group.all_reduce(torch.zeros(1))
    start = time.perf_counter()
    list(features.extracted(chosen))
    group.all_reduce(torch.zeros(1))
    extraction = time.perf_counter() - start
    if rank == 0:
        torch.save([seconds, extraction, float(sum(coreset.ids))], out)
    dist.destroy_process_group()


def rows() -> Iterator[Row]:
    """Measured by wall clock, because CPU seconds of two processes would not show the gain."""
    points = features.projected(N)
    figures = {}
    for size in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            arguments = (size, f"{folder}/meeting", points, f"{folder}/out")
            mp.spawn(_program, arguments, nprocs=size)
            figures[size] = torch.load(f"{folder}/out", weights_only=True)
    same = figures[1][2] == figures[2][2]
    for number, what in enumerate(("coreset, N = 400,000, k = 4,000", "extraction")):
        one, two = figures[1][number], figures[2][number]
        note = f"one {one:.2f} s" + (f"; same picks: {same}" if number == 0 else "")
        yield Row(f"{what}: 2 workers against 1", f"{one / two:.2f} x", Time(0, two), "1.8 x", note)
