"""Two drawn nights, which reports are about."""

from __future__ import annotations

import pytest

from ops.storage.paths import Out
from tests.drawn_nights import FLAGGED, PRODUCTS, collect, first_night, second_night
from tests.runs import finish, model_of


@pytest.fixture(scope="session")
def nights(tmp_path_factory):
    """Two nights and their parts."""
    root = str(tmp_path_factory.mktemp("out"))
    model, before = model_of(PRODUCTS), first_night(root)
    after = second_night(before)
    finish(root, before, model, "2026-11-20", FLAGGED)
    finish(root, after, model, "2026-11-21", FLAGGED)
    return Out(root), before, after


@pytest.fixture(scope="session")
def data(nights):
    return collect(nights[0], parts=25, thumbnail=64)
