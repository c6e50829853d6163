"""Calls that a cluster never answers."""

from __future__ import annotations

import threading
import time

import pytest

from pipelines.cluster import answers
from pipelines.cluster.answers import AwakeClock, answered, is_silent, try_for
from pipelines.cluster.timeouts import Stalled


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """No call was left without an answer before."""
    monkeypatch.setattr(answers, "_silent", threading.Event())
    monkeypatch.setattr(answers, "_TICK", 0.02)


def wait_for_ever() -> None:
    threading.Event().wait()


def test_an_answer_and_an_error_come_back():
    assert answered(lambda: 3, 5, "a number") == 3
    assert answered(lambda: 3, 0, "a number") == 3
    with pytest.raises(KeyError, match="x"):
        answered(lambda: {}["x"], 5, "a number")
    assert not is_silent()


def test_a_call_without_an_answer_ends_and_no_further_one_is_tried():
    began = time.monotonic()
    with pytest.raises(Stalled, match=r"did not answer for 0\.1 seconds \(its state\)"):
        answered(wait_for_ever, 0.1, "its state")
    assert 0.1 <= time.monotonic() - began < 5
    with pytest.raises(Stalled, match=r"does not answer any more \(the rest\)"):
        answered(lambda: 3, 60, "the rest")
    assert try_for(lambda: None, 60, "an end") is False


def test_seconds_in_which_this_process_was_stopped_do_not_count(monkeypatch):
    clock = iter([0.0, 1000.0, *(1000.0 + n for n in range(1, 200))])
    monkeypatch.setattr(answers.time, "monotonic", lambda: next(clock))
    answer = threading.Event()
    threading.Timer(0.1, answer.set).start()
    assert answered(lambda: answer.wait(5), 0.5, "an image") is True


def test_a_clock_tells_how_long_this_process_was_stopped(monkeypatch):
    clock = AwakeClock()
    time.sleep(0.1)
    assert clock.asleep() < 5
    real = time.monotonic
    monkeypatch.setattr(answers.time, "monotonic", lambda: real() + 500)
    time.sleep(0.1)
    assert 490 < clock.asleep() <= 501
    clock.end()


def test_a_cluster_that_lives_has_more_time_but_not_for_ever():
    asked, answer = [], threading.Event()

    def lives():
        asked.append(1)
        if len(asked) == 2:
            answer.set()
        return True

    assert answered(lambda: answer.wait(5), 0.1, "images", lives) is True
    assert len(asked) == 2
    answer.clear()
    with pytest.raises(Stalled, match=r"did not answer for 0\.1 seconds"):
        answered(wait_for_ever, 0.1, "images", lambda: bool(asked.append(1)) or True)
    assert len(asked) == 5
