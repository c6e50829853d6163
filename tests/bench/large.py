"""Two processes against one where a fit is large: more patches and picks, and a wide network."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench import workers
from tests.bench.measure import Row

WORK = workers.Work(2_000_000, 20_000, 64, wide=True)


def rows() -> Iterator[Row]:
    """As `workers`."""
    return workers.rows(WORK)
