"""What the device can do at most: copies, and products of matrices."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.bench.gpu.part import Check, Figure


def run(check: Check) -> Iterator[Figure]:
    """Copies within the device and to it, then products in every precision."""
    numbers = check.size(2**28, 2**22)
    source = torch.ones(numbers, device=check.device)
    target = torch.empty_like(source)
    seconds = check.seconds(lambda: target.copy_(source))
    yield Figure("copy within the device, read and written", 8 * numbers / seconds / 1e9, "GB/s")
    for pinned in (False, True):
        if pinned and not check.cuda:
            continue
        host = torch.ones(numbers // 4, pin_memory=pinned)
        part = target[: len(host)]
        seconds = check.seconds(lambda: part.copy_(host, non_blocking=True))  # noqa: B023
        what = f"copy to the device from {'pinned' if pinned else 'pageable'} memory"
        yield Figure(what, 4 * len(host) / seconds / 1e9, "GB/s")
    size = check.size(8192, 512)
    for name, kind, tf32 in (
        ("float64", torch.float64, False),
        ("float32", torch.float32, False),
        ("TF32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
    ):
        if not check.left(5):
            yield Figure(f"product of matrices, {name}", note="no time left")
            continue
        allow_tf32(tf32)
        a = torch.randn(size, size, device=check.device).to(kind)
        seconds = check.seconds(lambda: a @ a)  # noqa: B023
        yield Figure(f"product of matrices, {name}", 2 * size**3 / seconds / 1e12, "TFLOP/s")
    allow_tf32(False)


def allow_tf32(allowed: bool) -> None:
    """Whether products and convolutions of float32 may be rounded to ten bits of mantissa."""
    kind = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = kind
    torch.backends.cudnn.conv.fp32_precision = kind
