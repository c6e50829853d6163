from __future__ import annotations

import pytest

from tests.faults.kills import world_of

IMAGES = 800


@pytest.fixture(scope="package")
def world():
    """Three nodes, an S3 server, a tracker, and small images, for all tests of this folder."""
    with world_of(IMAGES) as found:
        yield found
