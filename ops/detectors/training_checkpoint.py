"""What a training saves after each epoch, so that it can resume after a worker dies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def snapshot(
    curve: list[float], network: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Any]:
    """A copy of losses, weights and optimiser state, as plain data on the CPU."""
    states = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
    return {"curve": list(curve), **_cpu_copy(states)}


def restore(saved: Any, network: nn.Module, optimiser: torch.optim.Optimizer) -> list[float]:
    """Load a snapshot into network and optimiser, and return its losses; [] if there is none."""
    if not saved:
        return []
    network.load_state_dict(saved["network"])
    optimiser.load_state_dict(_cpu_copy(saved["optimiser"]))  # an optimiser keeps these tensors
    return list(saved["curve"])


def _cpu_copy(state: Any) -> Any:
    """A deep copy on the CPU: the training changes its tensors while a snapshot is sent."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _cpu_copy(value) for key, value in state.items()}
    return [_cpu_copy(value) for value in state] if isinstance(state, list) else state
