"""Reservations of jobs that share a cluster; a small model of Ray's stands in for the cluster."""

from __future__ import annotations

import pytest

from ops.errors import UserError
from pipelines.cluster import reservation
from pipelines.cluster import resources as cluster_resources
from pipelines.cluster.reservation import NoRoom, reserved, reserved_readers
from pipelines.cluster.resources import Resources


class Group:
    """A placement group: placed whole or not at all."""

    def __init__(self, cluster, cpus, largest) -> None:
        self.cluster, self.cpus = cluster, cpus
        self.placed = cpus <= cluster.free and largest <= cluster.piece
        if self.placed:
            cluster.free -= cpus

    def wait(self, _):
        return self.placed

    def remove(self):
        if self.placed:
            self.cluster.free += self.cpus
        self.placed = False


class FakeCluster:
    """CPUs, of which others hold some; `then` is called in each pause of who waits."""

    def __init__(self, cpus: float) -> None:
        self.cpus = self.free = self.piece = cpus
        self.pauses, self.then = 0, lambda: None

    def request(self, resources, workers, readers):
        cpus = workers * resources.cpus
        return {
            "workers": Group(self, cpus, cpus),
            "readers": Group(self, readers * resources.reader_cpus, 0),
        }

    def pause(self, _):
        self.pauses += 1
        assert self.pauses < 100, "it waits for ever"
        self.then()


@pytest.fixture
def six(monkeypatch):
    """Six CPUs; time passes only in pauses, two seconds in each."""
    cluster = FakeCluster(6.0)

    def request(resources, workers, readers):
        return cluster.request(resources, workers, readers)

    monkeypatch.setattr(cluster_resources, "_resources", lambda: {"CPU": cluster.cpus})
    monkeypatch.setattr(cluster_resources, "_free_resources", lambda: {"CPU": cluster.free})
    monkeypatch.setattr(Resources, "request", request)
    monkeypatch.setattr(reservation, "remove_placement_group", lambda group: group.remove())
    monkeypatch.setattr(reservation, "describe_cluster", lambda: "it is busy")
    monkeypatch.setattr(reservation.time, "sleep", cluster.pause)
    monkeypatch.setattr(reservation.time, "monotonic", lambda: 2.0 * cluster.pauses)
    return cluster


def test_a_job_alone_takes_all_of_the_cluster_and_gives_it_back(six):
    with reserved(Resources()) as held:
        assert (held.count(), held.readers, held.max_readers(3)) == (3, 6, 5)
        assert six.free == 0
    assert (six.free, six.pauses) == (6, 0)


def test_a_second_job_waits_until_the_first_has_ended(six, caplog):
    with reserved(Resources()):
        six.then = lambda: setattr(six, "free", 6.0) if six.pauses == 20 else None
        with reserved(Resources()) as second:
            assert second.count() == 3
    assert six.pauses == 20


def test_a_second_job_takes_less_if_less_is_free(six):
    six.free = 2.5  # others hold the rest
    with reserved(Resources()) as held:
        assert (held.count(), held.readers) == (1, 3)
        assert six.free == 0
    assert six.pauses == 2  # what the job itself held before has the time to become free


def test_three_jobs_of_two_cpus_work_at_once(six):
    six.free = 2.0
    with reserved(Resources()) as first:
        six.free = 2.0
        with reserved(Resources()) as second:
            six.free = 2.0
            with reserved(Resources()) as third:
                assert [job.count() for job in (first, second, third)] == [1, 1, 1]
                assert six.free == 0


def test_a_number_of_workers_that_is_asked_for_is_never_less(six):
    six.free = 3.0
    six.then = lambda: setattr(six, "free", 5.0) if six.pauses == 9 else None
    with reserved(Resources(workers=4)) as held:
        assert (held.count(), held.readers) == (4, 2)
    assert six.pauses == 9


def test_a_job_that_finds_no_room_says_so_and_holds_nothing(six):
    six.free = 1.5
    with (
        pytest.raises(NoRoom, match=r"3 workers .* within 30 seconds; it is busy\. Start the same"),
        reserved(Resources(wait_for_room=30)),
    ):
        pass
    assert six.free == 1.5
    assert six.pauses == 16


def test_a_job_whose_nodes_leave_while_it_waits_is_refused(six):
    six.free = 0.0
    six.then = lambda: setattr(six, "cpus", 2.0) if six.pauses == 5 else None
    with (
        pytest.raises(UserError, match=r"3 workers of 1 CPUs .* into 2 CPUs"),
        reserved(Resources(workers=3)),
    ):
        pass
    assert six.pauses == 5


def test_free_cpus_in_pieces_that_are_too_small_make_a_smaller_job(six):
    six.piece = 2.0
    with reserved(Resources()) as held:
        assert held.count() == 2


def test_a_job_whose_readers_find_no_room_holds_no_workers(six, monkeypatch):
    request = Resources.request

    def and_another_job_is_faster(resources, workers, readers):
        six.free -= 1
        groups = request(resources, workers, readers)
        six.free += 1
        return groups

    monkeypatch.setattr(Resources, "request", and_another_job_is_faster)
    with pytest.raises(NoRoom), reserved(Resources(workers=3, wait_for_room=30)):
        pass
    assert six.free == 6


def test_all_bundles_of_a_group_have_one_size(monkeypatch):
    monkeypatch.setattr(cluster_resources, "placement_group", lambda bundles: bundles)
    assert Resources(gpus=0.5).request(2, 3) == {
        "workers": [{"CPU": 1.0, "GPU": 0.5}] * 2,
        "readers": [{"CPU": 0.5}] * 3,
    }
    assert Resources(cpus=0).request(2, 3) == {"readers": [{"CPU": 0.5}] * 3}
    assert Resources().request(0, 1) == {"readers": [{"CPU": 0.5}]}


def test_an_error_gives_the_reservation_back(six):
    with pytest.raises(KeyboardInterrupt), reserved(Resources()):
        raise KeyboardInterrupt
    assert six.free == 6


def test_steps_without_a_network_reserve_readers(six):
    with reserved_readers(Resources(cpus=4, gpus=1)) as held:
        assert (held.cpus, held.gpus) == (0.5, 0.0)
        assert held.max_readers(1) == 10


def test_what_autoscales_goes_beyond_its_reservation_where_cpus_are_free(six):
    six.free = 3.0
    with reserved(Resources(workers=1, max_workers=2)) as held:
        six.free = 0.5
        workers = held.worker_options()["ray_remote_args_fn"]
        readers = held.reader_options()["ray_remote_args_fn"]
        assert [len(workers()) for _ in range(3)] == [1, 0, 0]
        six.pauses += 1  # it looks every second
        assert [len(readers()) for _ in range(3)] == [0, 1, 1]
