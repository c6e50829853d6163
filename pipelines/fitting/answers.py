"""Answers and progress of a fit's coordinator."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import ray

from ops.progress import ProgressCallback
from pipelines.cluster.answers import answered, is_silent
from pipelines.cluster.timeouts import Stalled

_ANSWER = 600.0  # seconds in which the coordinator hands out the tensors of one detector


def ask(method: Any, *arguments: Any) -> Any:
    """What a method of the coordinator returns. Raises Stalled if it does not answer."""
    return answered(lambda: ray.get(method.remote(*arguments)), _ANSWER, "the results of a fit")


@contextlib.contextmanager
def report_progress(coordinator: Any, progress: ProgressCallback) -> Iterator[None]:
    """Report progress twice a second, in a thread, because the trainer blocks this one."""
    ended = threading.Event()

    def report() -> None:
        progress(*ask(coordinator.progress))

    def report_until_ended() -> None:
        while not ended.wait(0.5):
            try:
                report()
            except Stalled:  # whoever waits for the fit finds it out, too
                return

    thread = threading.Thread(target=report_until_ended, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if not is_silent():
            report()
