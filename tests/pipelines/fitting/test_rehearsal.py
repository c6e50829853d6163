import pyarrow as pa
import pytest
import ray

from ops.detectors.fit_cost import FitSize
from ops.errors import UserError
from ops.features.backbone import Backbone, BackboneSettings
from pipelines.cluster.resources import Resources
from pipelines.fitting import rehearsal
from pipelines.fitting.rehearsal import Rehearsal, rehearse_on_worker

BACKBONE = BackboneSettings("squeezenet1_1", "features.3", "random")
ROWS = pa.table({"row": list(range(20))})


class Task:
    """Stands in for a task on a worker with a GPU."""

    def __init__(self, monkeypatch, result):
        self.options, self.arguments, self.cancelled = {}, (), False
        monkeypatch.setattr(rehearsal, "put", lambda tensors: ("stored", sorted(tensors)))
        monkeypatch.setattr(ray, "remote", self.remote_function)
        monkeypatch.setattr(ray, "cancel", self.cancel)

        def get(reference, timeout):
            assert reference == "reference"
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(ray, "get", get)

    def remote_function(self, **options):
        self.options = options
        return lambda _: self

    def remote(self, *arguments):
        self.arguments = arguments
        return "reference"

    def cancel(self, reference, force):
        assert (reference, force) == ("reference", True)
        self.cancelled = True


@pytest.fixture(scope="module")
def network():
    return Backbone(BACKBONE)


def test_a_worker_with_a_gpu_measures_with_its_own_copy_of_the_network(monkeypatch, network):
    measured = Rehearsal(1.0, 2.0, 3.0, gpu_bytes=5, gpu_used=4)
    task = Task(monkeypatch, measured)
    sizes = {"nut": FitSize(64, [(8, 7, 7)], 5, 2, network)}
    resources = Resources(cpus=2, gpus=0.5)
    assert rehearse_on_worker(ROWS, "request", sizes, network, resources) is measured
    assert task.options == {"num_cpus": 2, "num_gpus": 0.5}
    rows, request, plain, [weights], given = task.arguments
    assert rows.to_pydict() == {"row": list(range(8))}
    assert (request, given) == ("request", resources)
    assert plain == {"nut": FitSize(64, [(8, 7, 7)], 5, 2)}
    assert weights == ("stored", sorted(network.state()))


def test_a_gpu_that_does_not_become_free_is_told_with_the_remedy(monkeypatch, network):
    task = Task(monkeypatch, ray.exceptions.GetTimeoutError())
    with pytest.raises(UserError, match="no worker of 2 CPUs and 1 GPUs became free within 600"):
        rehearse_on_worker(ROWS, "request", {}, network, Resources(cpus=2, gpus=1))
    assert task.cancelled
