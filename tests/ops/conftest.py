"""What tests of ops share: a tiny random backbone, and one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ops.backbone import Backbone, BackboneSettings

TINY = BackboneSettings("squeezenet1_1", "features.3,features.6", "random", 0)


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
