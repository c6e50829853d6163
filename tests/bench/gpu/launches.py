"""Counts what a computation asks of a GPU: kernels launched, and waits for it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.bench.gpu.part import Check

_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def launches(check: Check, work: Callable[[], object]) -> tuple[int, int]:
    """Launches and waits of one call; zeros without a GPU."""
    if not check.cuda:
        return 0, 0
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    check.wait()
    with torch.profiler.profile(activities=activities) as profile:
        work()
    counts = {event.key: event.count for event in profile.key_averages()}
    started = sum(counts.get(name, 0) for name in _LAUNCHES)
    # The profiler itself waits for the device once when it ends.
    return started, max(0, sum(counts.get(name, 0) for name in _WAITS) - 1)
