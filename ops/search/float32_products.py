"""Products of float32 matrices that are computed in float32, whatever the process allows elsewhere.

TF32 on a GPU and bfloat16 on a CPU round factors to 10 and 7 bits of mantissa. Bounds on rounding
errors, and features that decide scores, rest on the 23 bits of float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_products() -> Iterator[None]:
    """Within this context, products of float32 matrices are not rounded further, on any device."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # set at run time
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
