"""Detectors become more on nodes that join in mid-run, and every image still has its one row."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ops.detectors.model_folder import write_model
from ops.images.resize import InputSettings
from tests.cluster import Cluster
from tests.conftest import tiny_model
from tests.faults.warehouse import Warehouse, build, published, start

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.campaign]
IMAGES = 1500


@pytest.fixture
def nodes():
    """A cluster of one node."""
    found = Cluster(os.environ | {"OMP_NUM_THREADS": "1"}, 2)
    yield found
    found.end()


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory) -> Warehouse:
    return build(str(tmp_path_factory.mktemp("warehouse")), IMAGES)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """It takes far longer over an image than those who read it."""
    place = str(tmp_path_factory.mktemp("model") / "model")
    small = tiny_model("washer")
    write_model(place, replace(small, card=replace(small.card, input=InputSettings(448))))
    return place


def detectors(node) -> set[int]:
    return {process for process, name in node.workers() if "ScoreImages" in name}


def test_detectors_join_on_a_node_that_joins(warehouse, model, nodes, tmp_path):
    log, out = str(tmp_path / "log"), str(tmp_path / "out")
    words = [
        "--model",
        model,
        "--resources.batch",
        "5",
        "--resources.workers",
        "1",
        "--resources.max_workers",
        "3",
    ]
    job = start("score", warehouse.words(out, *words), log, {"RAY_ADDRESS": nodes.address})
    deadline = time.monotonic() + 120
    while not detectors(nodes.head):
        assert job.poll() is None, Path(log).read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    joined = nodes.join()
    grown = set()
    while job.poll() is None:
        grown |= detectors(joined)
        time.sleep(0.1)
    assert job.returncode == 0, Path(log).read_text()
    assert grown
    table = published(out)
    assert len(set(table["image_id"].to_pylist())) == len(table) == IMAGES
    assert table["status"].to_pylist().count("ok") == IMAGES - 1  # one is broken
