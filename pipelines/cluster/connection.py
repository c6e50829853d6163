"""Connecting to a Ray cluster, and leaving it, also one that does not answer."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import worker
from ray.data import DataContext

from ops.errors import RunError, UserError
from pipelines.cluster import answers
from pipelines.cluster.answers import GRACE, try_for

#: Whether `connected` made the connection of this process, and nothing has ended it yet.
_connected = threading.Event()


@contextlib.contextmanager
def connected(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Connect to the cluster at `address`, or at RAY_ADDRESS (set for submitted jobs).

    Without either, starts a local cluster. Leaves the cluster when the context ends without an
    error; after an error the caller does it with `leave`, once the error has been reported, because
    that may take time. Ray's own messages are silenced.
    """
    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    logging.getLogger("ray").setLevel(logging.ERROR)
    # The core worker, which is native code, prints messages of its own.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    own: dict[str, Any] = {}
    if where == "local":
        own = {"num_cpus": cpus, "include_dashboard": False}
    with _stderr_discarded():  # Ray prints a note about that variable
        try:
            ray.init(
                address=where,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONWARNINGS": "ignore"}},
                **own,
            )
        except ConnectionError as error:
            cause = str(error.__cause__ or "") or str(error)
            reason = cause.splitlines()[-1]  # behind a traceback as text
            raise UserError(
                f"there is no Ray cluster at {where}, or no node of it on this machine: {reason}"
            ) from error
        except Exception as error:  # Ray raises it where a process of a node does not start in time
            if type(error) is not Exception:
                raise
            raise RunError(
                f"Ray did not start: {error} The machine may be too busy; start the same command "
                "again, or raise RAY_raylet_start_wait_time_s"
            ) from error
    silence_ray()
    _connected.set()
    yield
    leave()


def leave() -> bool:
    """Leave the cluster, within `GRACE` seconds; False if it does not answer.

    A cluster that this process has started ends in any case. If the answer is False, the process
    must end by `os._exit`, as Ray waits for the cluster again when the interpreter ends.
    """
    if not _connected.is_set():
        return not answers.is_silent()
    _connected.clear()
    started = _started_processes()
    if answers.is_silent() or not try_for(ray.shutdown, GRACE, "leaving the cluster"):
        for process in started:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        return False
    return True


def _started_processes() -> list[int]:
    """The processes of a cluster that this process has started, and their descendants."""
    node: Any = worker._global_node
    own = node.all_processes.values() if node else ()
    found: list[int] = [info.process.pid for infos in own for info in infos]
    for process in found:
        with contextlib.suppress(OSError):  # it has ended
            for task in Path(f"/proc/{process}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


@contextlib.contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Discard what is written to stderr, by native code too; exceptions still propagate."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def silence_ray() -> None:
    """Silence Ray's messages; jobs print their own progress and errors.

    Ray's log files in its session folder keep them, except those of Ray Data and Ray Train.
    """
    # Ray prints a message, partly with a traceback, for each worker that died and for each task or
    # actor that it starts again. `log_to_driver=False` does not stop these, and no public setting
    # does. Failures that outlast the retries are raised.
    worker._worker_logs_enabled = False
    # Bounds on retries have no named parameter yet; pyproject.toml stops before they change.
    warnings.filterwarnings("ignore", message=".*ray_remote_args")
    # A short inventory has fewer blocks than there are workers, which is harmless.
    warnings.filterwarnings(
        "ignore", message="The (min|max)imum number of concurrent (task|actor)s"
    )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray Data logs each block that failed, with a traceback, before its images are isolated.
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
