"""The distributed greedy coreset on 64 simulated shards: rounds, messages, and time of a large fit.

Every rank is a thread with a shard of real patches, and only one computes at a time, so CPU seconds
can be told apart by rank. All ranks make the same picks among the proposals of a round: here the
first does, and the others take its result. What messages carry is counted where they are sent. The
last rows apply what was counted to 10^8 patches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ops.search.coreset import Coreset, _Proposals, greedy
from tests.bench import features
from tests.bench.measure import Row, Time
from tests.ops.threads import Threads

SHARDS = 64
#: Points and picks; the last is the largest whose shards fit into the memory of a small machine.
SIZES = [(100_000, 1_000), (100_000, 10_000), (400_000, 4_000)]
#: What the last rows are worked out for, and the bytes a second of a connection between two nodes.
LARGE, PICKS, BANDWIDTH, BARRIER = 100_000_000, 20_000, 1e9, 0.01


_PICK = _Proposals.pick


class Simulation:
    """Counts what the ranks of a group send, and the CPU seconds of each."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.turn = threading.Lock()
        self.barrier = threading.Barrier(size)
        self.table: list[Tensor] = [torch.empty(0)] * size
        self.sent = 0
        self.operations = 0
        self.seconds = [0.0] * size
        self.picked: dict[int, tuple[Any, Any, list[int], list[float]]] = {}
        self.pick_seconds = 0.0

    def pick(self, proposals: Any, k: int, coreset: Coreset, stop_below: float) -> Any:
        """What `_Proposals.pick` does, computed once a round. The caller has the turn."""
        if coreset.rounds not in self.picked:
            start, before = time.thread_time(), len(coreset.ids)
            rows = _PICK(proposals, k, coreset, stop_below)
            self.pick_seconds += time.thread_time() - start
            new = coreset.ids[before:], coreset.squared[before:]
            self.picked = {coreset.rounds: (rows, proposals.values, *new)}
            return rows
        rows, proposals.values, ids, squared = self.picked[coreset.rounds]
        coreset.ids += ids
        coreset.squared += squared
        return rows


class Simulated(Threads):
    """A rank of the simulation; it holds the turn except while it waits for others."""

    def __init__(self, rank: int, simulation: Simulation) -> None:
        self.rank, self.size, self._all = rank, simulation.size, simulation
        self._since = 0.0

    def begin(self) -> None:
        """Wait for the turn."""
        self._all.turn.acquire()
        self._since = time.thread_time()

    def end(self) -> None:
        """Give the turn away."""
        self._all.seconds[self.rank] += time.thread_time() - self._since
        self._all.turn.release()

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks."""
        self._all.table[self.rank] = tensor
        self._all.sent += tensor.numel() * tensor.element_size()
        self._all.operations += self.rank == 0
        self.end()
        self._all.barrier.wait()
        self.begin()
        out = list(self._all.table)
        self.end()
        self._all.barrier.wait()
        self.begin()
        return out


def simulated(points: Tensor, k: int, size: int = SHARDS) -> tuple[Coreset, Simulation]:
    """The greedy over `size` shards of points (n, d), one after the other in turn."""
    simulation = Simulation(size)
    found: list[Coreset | None] = [None] * size

    def program(rank: int) -> None:
        group = Simulated(rank, simulation)
        ids = torch.arange(rank, len(points), size)
        group.begin()
        try:
            found[rank] = greedy(points[ids], ids, k, group)
        except BaseException:
            simulation.barrier.abort()  # or the others would wait for ever
            raise
        finally:
            group.end()

    def pick(self: _Proposals, k: int, coreset: Coreset, stop_below: float) -> Any:
        return simulation.pick(self, k, coreset, stop_below)

    threads = [threading.Thread(target=program, args=(rank,)) for rank in range(size)]
    with mock.patch.object(_Proposals, "pick", pick):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    first = found[0]
    assert first is not None
    assert all(other == first for other in found), "the ranks chose different points"
    return first, simulation


def rows() -> Iterator[Row]:
    """Each size, then 10^8 patches."""
    every = features.projected(max(n for n, _ in SIZES))
    for n, k in SIZES:
        start = time.perf_counter()
        coreset, simulation = simulated(every[:n], k)
        took = Time(sum(simulation.seconds), time.perf_counter() - start)
        rounds = coreset.rounds
        name = f"{SHARDS} shards, N = {n:,}, k = {k:,}"
        yield Row(f"{name}: rounds", f"{rounds}", took, "", f"{k / rounds:.0f} picks a round")
        sent = simulation.sent
        each = f"{sent / rounds / SHARDS / 1e3:.1f} kB a round and rank"
        note = f"{each}; {simulation.operations / rounds:.1f} operations a round"
        yield Row("  sent by all ranks together", f"{sent / 1e6:.1f} MB", None, "", note)
        shards = (sum(simulation.seconds) - simulation.pick_seconds) / SHARDS
        note = f"and {simulation.pick_seconds:.2f} s for picks"
        yield Row("  CPU s of a rank for its shard, mean", f"{shards:.2f}", None, "", note)
    yield from _of_a_large_fit(every[: SIZES[-1][0]], coreset, simulation)


def _of_a_large_fit(points: Tensor, coreset: Coreset, simulation: Simulation) -> Iterator[Row]:
    """What the last simulation tells of `LARGE` patches on as many workers.

    Work on a shard grows with its points times picks at most; picks a round are taken as they were,
    which is the fewest seen: they grow with N.
    """
    rounds = PICKS / (len(coreset.ids) / coreset.rounds)
    growth = (LARGE / len(points)) * (PICKS / len(coreset.ids))
    repeated = simulation.pick_seconds
    shard = (sum(simulation.seconds) - repeated) / SHARDS * growth
    picks = repeated / len(coreset.ids) * PICKS
    sent = simulation.sent / coreset.rounds * rounds
    network = sent / BANDWIDTH + rounds * BARRIER * simulation.operations / coreset.rounds
    total = shard + picks + network
    name = f"{LARGE:.0e} patches on {SHARDS} workers of one thread, k = {PICKS:,}, worked out"
    note = f"{rounds:.0f} rounds; {sent / 1e9:.2f} GB received by each worker"
    yield Row(name, f"{total / 60:.0f} min", None, "", note)
    yield Row("  of which distances to a worker's own patches", f"{shard / 60:.0f} min")
    yield Row("  of which picks, that every worker repeats", f"{picks / 60:.1f} min")
    note = f"at {BANDWIDTH / 1e9:g} GB/s and {1e3 * BARRIER:g} ms an operation"
    yield Row("  of which messages", f"{network / 60:.1f} min", None, "", note)
