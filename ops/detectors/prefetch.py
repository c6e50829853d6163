"""Computes items ahead of their use, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")


def prefetch(
    function: Callable[[K], T], keys: Iterable[K], threads: int, depth: int
) -> Iterator[T]:
    """`function` of each key, in order, computed by threads at most `depth` items ahead.

    With 0 threads, each item is computed when it is requested.
    """
    if not threads:
        yield from map(function, keys)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for key in keys:
                waiting.append(pool.submit(function, key))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
