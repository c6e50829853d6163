"""The resources that a job reserves, also on nodes that have not joined yet."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import pytest

from ops.errors import UserError
from pipelines.cluster import resources as cluster_resources
from pipelines.cluster.resources import Resources
from tests.conftest import LOOPBACK_ONLY, ROOT

#: A cluster whose only node with a GPU joins once a job has asked for it.
JOINING = textwrap.dedent("""
    import threading, time
    import ray
    from ray.cluster_utils import Cluster
    from ray.util import placement_group_table
    from pipelines.cluster.resources import Resources

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})

    def states():
        return {group["state"] for group in placement_group_table().values()}

    def count():
        print("workers", Resources(workers=1, gpus=1, wait_for_nodes=90).count())

    try:
        ray.init(nodes.address, log_to_driver=False)
        assert "GPU" not in ray.cluster_resources()
        job = threading.Thread(target=count)
        job.start()
        while "PENDING" not in states():
            time.sleep(0.2)
        nodes.add_node(num_cpus=2, num_gpus=1, object_store_memory=2**27)
        job.join()
        while states() != {"REMOVED"}:
            time.sleep(0.2)
    finally:
        ray.shutdown()
        nodes.shutdown()
""")


@pytest.fixture
def has(monkeypatch):
    """Sets the cluster's resources for each call in turn; the last ones stay."""

    def set_resources(*answers):
        rest = list(answers)
        monkeypatch.setattr(
            cluster_resources, "_resources", lambda: rest.pop(0) if len(rest) > 1 else rest[0]
        )

    return set_resources


@pytest.mark.parametrize(
    ("resources", "cluster_has", "workers"),
    [
        (Resources(), {"CPU": 8.0}, 5),
        (Resources(), {"CPU": 2.0}, 1),
        (Resources(gpus=1), {"CPU": 20.0, "GPU": 2.0}, 1),
        (Resources(workers=2, gpus=1), {"CPU": 20.0, "GPU": 2.0}, 2),
        (Resources(workers=2, gpus=0.5), {"CPU": 20.0, "GPU": 1.0}, 2),
    ],
)
def test_workers_leave_room_for_readers_and_map_writers(has, resources, cluster_has, workers):
    has(cluster_has)
    assert resources.count() == workers


@pytest.mark.parametrize(
    ("max_workers", "workers", "readers"), [(0, 2, 11), (2, 2, 11), (3, 3, 22), (20, 7, 110)]
)
def test_a_run_autoscales_as_far_as_the_cluster_has_room(has, max_workers, workers, readers):
    has({"CPU": 8.0})
    resources = Resources(workers=2, max_workers=max_workers)
    assert resources.max_count() == workers
    assert resources.max_readers(2) == readers


def test_too_many_workers_are_refused_with_the_number_that_fits(has):
    has({"CPU": 4.0})
    with pytest.raises(UserError, match=r"4 workers of 1 CPUs .* into 4 CPUs .* to 3 or"):
        Resources(workers=4).count()


def test_nodes_that_have_not_joined_are_awaited(has, monkeypatch):
    asked = []

    def ask(resources):
        asked.append(resources)

    monkeypatch.setattr(Resources, "_await_nodes", ask)
    has({"CPU": 0.0}, {"CPU": 4.0})
    resources = Resources(workers=2, wait_for_nodes=60)
    assert resources.count() == 2
    assert resources.count() == 2
    assert asked == [resources]


@pytest.mark.ray
def test_waiting_for_nodes_ends_and_removes_the_placement_group(cluster):
    from ray.util import placement_group_table

    before = set(placement_group_table())
    start = time.monotonic()
    with pytest.raises(UserError, match="do not fit"):
        Resources(workers=40, wait_for_nodes=0.5).count()
    assert 0.5 <= time.monotonic() - start < 20
    asked = {k: group["state"] for k, group in placement_group_table().items() if k not in before}
    deadline = time.monotonic() + 10
    while set(asked.values()) != {"REMOVED"}:
        assert time.monotonic() < deadline, asked
        time.sleep(0.2)
        asked = {name: placement_group_table()[name]["state"] for name in asked}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.alone
def test_a_node_that_joins_while_it_is_awaited_is_used(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    job = subprocess.run(
        [sys.executable, "-c", JOINING],
        cwd=ROOT,
        env=environment | LOOPBACK_ONLY | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert job.returncode == 0, job.stderr[-2000:]
    assert "workers 1" in job.stdout


def test_batches_are_larger_on_gpus_unless_their_size_is_given():
    assert Resources().images_per_batch == 16
    assert Resources(gpus=0.5).images_per_batch == 64
    assert Resources(gpus=1, batch=7).images_per_batch == 7
