"""What a fit says while its workers have not started."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from pipelines.cluster.timeouts import Stalled
from pipelines.fitting import heartbeat


@pytest.fixture
def later(monkeypatch):
    """A clock that can be moved; one of two workers has started, in a cluster of one node."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(heartbeat, "answered", lambda *_: {0: 1.0})
    monkeypatch.setattr(heartbeat, "describe_cluster", lambda: "the cluster has 1 node alive")
    resources = SimpleNamespace(workers=2, wait_for_room=300.0, stall_timeout=60.0)
    return clock, heartbeat.Watch(None, resources, on_start=time.time)


def test_workers_that_do_not_start_are_told_once_with_both_causes(later, monkeypatch):
    clock, watch = later
    told: list[str] = []
    log = SimpleNamespace(warning=lambda text, *values: told.append(text % values))
    monkeypatch.setattr(heartbeat, "log", log)
    for clock.now in (100.0, 121.0, 150.0):
        watch()
    assert told == [
        "1 of 2 workers of the fit have not started after 121 seconds; the fit waits for room, or "
        "for a machine that is slow: the cluster has 1 node alive"
    ]


def test_workers_that_find_no_room_in_time_end_the_fit(later):
    clock, watch = later
    clock.now = 421.0
    with pytest.raises(Stalled, match="2 workers of the fit found no room for 421 seconds"):
        watch()
