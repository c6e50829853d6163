"""A training run of Ray Train that Ctrl-C can end."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ray.train.torch import TorchTrainer


def interruptible_fit(trainer: TorchTrainer, watch: Callable[[], None]) -> None:
    """Run `trainer.fit()` in a thread, so that Ctrl-C raises KeyboardInterrupt in this one.

    `watch` is called every second, and ends the fit by an exception.

    In the main thread Ray Train installs its own handler of SIGINT, which ends the process without
    a message. It installs none in other threads. Raises what `trainer.fit()` and
    `watch` raise.
    """
    raised: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            raised.append(error)

    # A daemon: after an interrupt nobody waits for it.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(1)
        watch()
    if raised:
        raise raised[0]
