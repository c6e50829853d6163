"""Whether fits on the device choose what fits on a CPU choose, and how long both take."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ops.distributed import Alone
from ops.features.moments import Moments
from ops.search.coreset import greedy
from tests.bench.gpu.part import Check, Figure

WIDTH = 128


def points(check: Check, count: int) -> Tensor:
    """Projected patches (count, 128) on the CPU: those of the images, repeated with small noise."""
    generator = torch.Generator().manual_seed(0)
    patches = check.bundle.patches
    matrix = torch.randn(patches.shape[1], WIDTH, generator=generator) / WIDTH**0.5
    projected = patches @ matrix
    spread = 0.1 * projected.std()
    chosen = torch.randint(len(projected), (count,), generator=generator)
    return projected[chosen] + spread * torch.randn(count, WIDTH, generator=generator)


def run(check: Check) -> Iterator[Figure]:
    """The greedy coreset, then moments."""
    n, k = check.size((1_000_000, 1_000), (20_000, 200))
    x, ids = points(check, n), torch.arange(n)
    start = time.perf_counter()
    expected = greedy(x, ids, k, Alone())
    yield Figure(f"greedy, N = {n:,}, k = {k:,}, CPU", time.perf_counter() - start, "s")
    on_device = x.to(check.device)
    greedy(on_device[:2000], ids[:2000], 100, Alone())  # the device warms up
    seconds = check.once(lambda: greedy(on_device, ids, k, Alone()))
    yield Figure(f"greedy, N = {n:,}, k = {k:,}, device", seconds, "s")
    found = greedy(on_device, ids, k, Alone())
    for name in ("ids", "squared", "radius"):
        same = getattr(found, name) == getattr(expected, name)
        yield Figure(f"greedy: {name} of the CPU", right=same)
    many = check.size(10_000, 500)
    if check.left(15):
        seconds = check.once(lambda: greedy(on_device, ids, many, Alone()))
        yield Figure(f"greedy, N = {n:,}, k = {many:,}, device", seconds, "s")
    yield from _moments(check)


def _moments(check: Check) -> Iterator[Figure]:
    places, width, images = check.size((784, 550, 64), (16, 40, 64))
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(images, places, width, generator=generator) + 3
    few = slice(0, min(8, places))
    expected, found = Moments(len(vectors[0, few]), width), Moments(places, width, check.device)
    for batch in vectors.split(16):
        expected.add(batch[:, few])
        found.add(batch.to(check.device))
    for what, there, here in (
        ("mean", expected.mean, found.mean[few]),
        ("covariance", expected.covariance(few), found.covariance(few)),
    ):
        away = float((here.cpu() - there).abs().max() / there.abs().max())
        note = "of the largest, limit 1e-10"
        yield Figure(f"moments: {what} against the CPU", away, "", note, away <= 1e-10)
    batch = vectors[:16].to(check.device)
    seconds = check.seconds(lambda: found.add(batch), 3) / 16
    yield Figure(f"moments, {places} places, {width} channels: an image", seconds * 1e3, "ms")
