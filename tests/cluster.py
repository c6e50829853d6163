"""A Ray cluster of several nodes on this machine, each a process that may be killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from ops.errors import UserError
from tests.conftest import LOOPBACK_ONLY

BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
#: The command `ray`, but that what keeps nodes on loopback would forbid others than the head.
_JOIN = """
from ray._private import ray_constants, services
ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda address=None: "127.0.0.1"
from ray.scripts.scripts import main
main()
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Node:
    """One `ray start --block`: a raylet and what belongs to it."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *words: str) -> None:
        ray = [BIN / "ray"] if "--head" in words else [sys.executable, "-c", _JOIN]
        command = [*ray, "start", "--block", "--disable-usage-stats"]
        self._process = subprocess.Popen(
            [*command, f"--node-ip-address={HOST}", *words],
            env=environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def raylet(self) -> int:
        """Its process."""
        return next(pid for pid in _children(self._process.pid) if "raylet" in _words(pid)[0])

    def workers(self) -> Iterator[tuple[int, str]]:
        """Processes that run something now, each with what it calls itself."""
        with contextlib.suppress(StopIteration):
            for pid in _children(self.raylet):
                name = _words(pid)[0]
                if name.startswith("ray::") and "IDLE" not in name:
                    yield pid, name

    def kill(self) -> None:
        """SIGKILL for the raylet; its workers and agents follow it."""
        os.kill(self.raylet, signal.SIGKILL)
        self._end_rest()

    def end(self) -> None:
        """End the node and all that it started, and nothing else."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._end_rest()

    def _end_rest(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)


class Cluster:
    """A head and other nodes. Their workers inherit the environment they were started in."""

    def __init__(self, environment: Mapping[str, str], cpus: float, others: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nl-", dir="/tmp"))  # sockets need short paths
        foreign = ("RAY_", "MLFLOW_")
        self.environment = {
            **{k: v for k, v in environment.items() if not k.startswith(foreign)},
            **LOOPBACK_ONLY,
            "RAY_AUTH_MODE": "disabled",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        self.address = f"{HOST}:{free_port()}"
        self.dashboard = f"http://{HOST}:{(port := free_port())}"
        self._common = [f"--num-cpus={cpus:g}", f"--object-store-memory={200 * 2**20}"]
        self.head = Node(
            self.folder,
            self.environment,
            "--head",
            f"--port={self.address.split(':')[1]}",
            f"--temp-dir={self.folder}",
            "--include-dashboard=true",
            f"--dashboard-host={HOST}",
            f"--dashboard-port={port}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}",
            *self._common,
        )
        self.others: list[Node] = []
        try:
            self._wait(set())
            for _ in range(others):
                self.join()
        except BaseException:
            self.end()
            raise

    def join(self) -> Node:
        """Another node; two that started at once would be in each other's way."""
        before = self.alive()
        agent = f"--dashboard-agent-listen-port={free_port()}"
        where = f"--address={self.address}"
        node = Node(self.folder, self.environment, where, agent, *self._common)
        self.others.append(node)
        self._wait(before)
        return node

    def lose(self, node: Node) -> None:
        """Kill a node's raylet; the head notices some seconds later."""
        self.others.remove(node)
        node.kill()

    def alive(self) -> set[str]:
        """The nodes that the head knows to be alive."""
        with urllib.request.urlopen(f"{self.dashboard}/nodes?view=summary", timeout=5) as answer:
            found = [node["raylet"] for node in json.load(answer)["data"]["summary"]]
        return {node["nodeId"] for node in found if node.get("state") == "ALIVE"}

    def _wait(self, before: set[str]) -> None:
        """Until the last node has joined, and those that were lost are known to be."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, KeyError, UserError):
                alive = self.alive()
                if alive - before and len(alive) == 1 + len(self.others):
                    return
            time.sleep(0.3)
        raise TimeoutError("the cluster never had all of its nodes")

    def workers(self) -> list[tuple[int, str]]:
        """Processes of all nodes that run something now, each with what it calls itself."""
        return [worker for node in (self.head, *self.others) for worker in node.workers()]

    def end(self) -> None:
        """End all nodes."""
        for node in (*self.others, self.head):
            node.end()
        shutil.rmtree(self.folder, ignore_errors=True)


def _children(pid: int) -> list[int]:
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError):
                status = (place / "stat").read_text()
                if int(status.rpartition(")")[2].split()[1]) == pid:
                    found.append(int(place.name))
    return found


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return [""]
