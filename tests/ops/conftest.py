"""What tests of ops share: a tiny random backbone, and one thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import pytest
import torch
from torch import nn

from ops.features.backbone import Backbone, BackboneSettings

F = TypeVar("F", bound=nn.Module)
TINY = BackboneSettings("squeezenet1_1", "features.3,features.6", "random", 0)


def moved(flows: F, far: float) -> F:
    """The flows with scales and shifts that are no longer those of the start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in flows.named_parameters():
            if weight.requires_grad:
                size = far if "subnet" in name else 0.3
                weight.add_(size * torch.randn(weight.shape, generator=generator).double())
    return flows


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from several threads, and groups of threads lose by them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """Shared, as nothing may change it; one test says that nothing does."""
    return Backbone(TINY)
