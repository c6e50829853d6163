from types import SimpleNamespace

import pytest
import torch

from ops.detectors.fit_cost import FitSize, ResourceEstimate
from ops.images.resize import InputSettings
from pipelines.cluster.memory import NotEnoughMemory
from pipelines.cluster.resources import Resources
from pipelines.fitting import plan
from pipelines.fitting.plan import Plan
from pipelines.fitting.rehearsal import Rehearsal
from pipelines.fitting.worker import check_gpu

GIB = 2**30
SIZE = FitSize(224, [(8, 28, 28)], 90, 3)


def planned(fit: int, host: int, score: int) -> Plan:
    estimate = ResourceEstimate(1, 1, fit, score, 7, "lower --x", fit_host_bytes=host)
    return Plan(3, {"nut": SIZE}, {"nut": 90}, 10, {"nut": estimate}, GIB, 8 * GIB, 10)


def test_minutes_follow_from_what_was_measured():
    found = plan.minutes(planned(1, 0, 1), Rehearsal(read=0.5, add=1.5, fit=240.0))
    assert found == plan.Minutes(extract=1.0, fit=4.0, calibrate=10 * 2 * 2 / 3 / 60)


def test_a_gpu_holds_what_a_fit_does_not_leave_in_the_node():
    needs = planned(fit=20 * GIB, host=15 * GIB, score=3 * GIB).gpu
    assert (needs.fit, needs.score) == (5 * GIB, 3 * GIB)
    needs.check(8 * GIB, 3 * GIB, 1.0)
    with pytest.raises(NotEnoughMemory) as error:
        needs.check(8 * GIB, 3 * GIB, 0.5)
    assert str(error.value) == (
        "the fit of 'nut' needs 8.0 GiB of a GPU, but a worker's share of it is 4.0 GiB: lower "
        "--x, or give each worker more of a GPU (--resources.gpus)"
    )


def test_scoring_may_need_more_of_a_gpu_than_the_fit():
    with pytest.raises(NotEnoughMemory, match=r"^scoring with this model needs 9\.0 GiB of a GPU"):
        planned(2 * GIB, GIB, 6 * GIB).gpu.check(8 * GIB, 3 * GIB, 1.0)


def test_workers_without_a_gpu_have_nothing_to_check():
    planned(20 * GIB, 0, 20 * GIB).gpu.check(0, 0, 0.0)


class Network:
    """Stands in for a network on a GPU, which keeps the shape of what it was given."""

    def __call__(self, images):
        self.shape = tuple(images.shape)


class OneGpu(Resources):
    """Resources with a GPU, whose tensors lie on the CPU."""

    device = "cpu"


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 8 GiB: 1 GiB is held by libraries and other processes, 2 GiB by this process."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (6 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 2 * GIB)


def test_each_worker_of_a_fit_looks_at_its_own_gpu_after_a_pass_of_a_batch(gpu):
    network, needs = Network(), planned(4 * GIB, 0, GIB).gpu
    request = SimpleNamespace(input=InputSettings(size="32x24"))
    check_gpu(network, request, OneGpu(gpus=1, batch=2), needs)
    assert network.shape == (2, 3, 24, 32)
    with pytest.raises(NotEnoughMemory, match=r"the fit of 'nut' needs 6\.8 GiB of a GPU"):
        check_gpu(network, request, OneGpu(gpus=0.75, batch=2), needs)


def test_a_worker_without_a_gpu_passes_nothing_through_the_network():
    network = Network()
    check_gpu(network, None, Resources(gpus=0), planned(GIB, 0, GIB).gpu)
    assert not hasattr(network, "shape")
