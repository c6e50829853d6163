import pytest

from ops.detectors.fit_cost import FitSize, ResourceEstimate
from pipelines.cluster.memory import NotEnoughMemory
from pipelines.fitting import plan
from pipelines.fitting.plan import Plan
from pipelines.fitting.rehearsal import Rehearsal

GIB = 2**30
SIZE = FitSize(224, [(8, 28, 28)], 90, 3)


def planned(fit: int, host: int, score: int) -> Plan:
    estimate = ResourceEstimate(1, 1, fit, score, 7, "lower --x", fit_host_bytes=host)
    return Plan(3, {"nut": SIZE}, {"nut": 90}, 10, {"nut": estimate}, GIB, 8 * GIB)


def test_minutes_follow_from_what_was_measured():
    found = plan.minutes(planned(1, 0, 1), Rehearsal(read=0.5, add=1.5, fit=240.0))
    assert found == plan.Minutes(extract=1.0, fit=4.0, calibrate=10 * 2 * 2 / 3 / 60)


def test_a_gpu_holds_what_a_fit_does_not_leave_in_the_node():
    result = planned(fit=20 * GIB, host=15 * GIB, score=3 * GIB)
    assert result.fit_gpu_bytes == 5 * GIB
    assert result.score_gpu_bytes == 3 * GIB
    measured = Rehearsal(1, 1, 1, gpu_bytes=8 * GIB, gpu_used=3 * GIB)
    plan.check_on_gpu(result, measured, 1.0)
    with pytest.raises(NotEnoughMemory) as error:
        plan.check_on_gpu(result, measured, 0.5)
    assert str(error.value) == (
        "the fit of 'nut' needs 8.0 GiB of a GPU, but a worker's share of it is 4.0 GiB: lower "
        "--x, or give each worker more of a GPU (--resources.gpus)"
    )


def test_scoring_may_need_more_of_a_gpu_than_the_fit():
    measured = Rehearsal(1, 1, 1, gpu_bytes=8 * GIB, gpu_used=3 * GIB)
    with pytest.raises(NotEnoughMemory, match=r"^scoring with this model needs 9\.0 GiB of a GPU"):
        plan.check_on_gpu(planned(2 * GIB, GIB, 6 * GIB), measured, 1.0)


def test_workers_without_a_gpu_have_nothing_to_check():
    plan.check_on_gpu(planned(20 * GIB, 0, 20 * GIB), Rehearsal(1, 1, 1), 0.0)
