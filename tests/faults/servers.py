"""Servers that may be killed and started again at the same port: S3 behind a relay, a tracker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.cluster import HOST, free_port
from tests.conftest import ROOT


class Server:
    """A process with all that it starts, and the address that it answers at."""

    def __init__(self, words: list[str], port: int, environment: Mapping[str, str] = os.environ):
        self.address = f"http://{HOST}:{port}"
        self._command = [sys.executable, "-m", *words]
        self._environment = environment
        self.start()

    def start(self) -> None:
        """Start it, and wait for its first answer."""
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.address, timeout=2)
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.2)
        self.kill()
        raise TimeoutError(f"{self._command[2]} did not start")

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)


def s3_server() -> tuple[Server, int]:
    """An S3 server, and its port."""
    port = free_port()
    return Server(["moto.server", "-H", HOST, "-p", str(port)], port), port


def relay_to(target: int) -> Server:
    """A way to a server, which may die without it."""
    port = free_port()
    return Server(["tests.faults.relay", str(port), str(target)], port)


def tracker_in(folder: Path) -> Server:
    """A tracking server whose database is a file."""
    folder.mkdir()
    port = free_port()
    words = ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    words += ["--artifacts-destination", f"{folder}/artifacts"]
    # Eight processes for jobs of its own, which nobody asks it for.
    return Server(words, port, os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
