"""The pod that starts a night on Kubernetes, against an API server that plays an end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import ROOT

PROGRAM = ROOT / "deploy" / "kuberay" / "batch" / "start_night.py"
TEMPLATE = {"spec": {"jobTemplate": {"entrypoint": "python -m jobs.nightly"}}}
HERE = "/apis/ray.io/v1/namespaces/nightloupe"


class Kubernetes:
    """An API server. `states` are a RayJob's one after the other; `codes` the first answers'."""

    def __init__(self, states: list[dict], codes: list[int]) -> None:
        self.asked: list[tuple[str, str]] = []
        self.created: list[dict] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, body: dict) -> None:
                outer.asked.append((self.command, self.path))
                code = codes.pop(0) if codes else 200
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def do_GET(self):
                assert self.headers["Authorization"] == "Bearer the-token"
                if "/raycronjobs/" in self.path:
                    self.answer(TEMPLATE)
                else:
                    self.answer({"status": states.pop(0) if len(states) > 1 else states[0]})

            def do_POST(self):
                length = int(self.headers["Content-Length"])
                outer.created.append(json.loads(self.rfile.read(length)))
                self.answer({})

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def start(tmp_path):
    """Run the program against such a server; its exit code, what it said, and the server."""
    (tmp_path / "token").write_text("the-token")
    (tmp_path / "namespace").write_text("nightloupe")
    servers = []

    def run(states: list[dict], codes: list[int] = ()) -> tuple[int, str, Kubernetes]:
        servers.append(Kubernetes(states, list(codes)))
        address = f"http://127.0.0.1:{servers[-1].server.server_port}"
        done = subprocess.run(
            [sys.executable, PROGRAM],
            env=os.environ
            | {"ACCOUNT": str(tmp_path), "SERVER": address}
            | {"POLL_SECONDS": "0.01", "NIGHT": "nightloupe-night-1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr, servers[-1]

    yield run
    for one in servers:
        one.server.shutdown()
        one.server.server_close()


RUNNING = [{}, {"jobDeploymentStatus": "Initializing"}, {"jobDeploymentStatus": "Running"}]


def ended(deployment: str, job: str = "") -> list[dict]:
    end = {"jobDeploymentStatus": deployment, "jobStatus": job, "message": f"It was {job}."}
    return [*RUNNING, end]


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (("Complete", "SUCCEEDED"), 0),
        (("Complete", "STOPPED"), 1),
        (("Failed", "FAILED"), 1),
        (("Failed", ""), 1),  # the cluster did not come up in time
        (("ValidationFailed", ""), 1),
    ],
)
def test_it_ends_as_its_night(start, end, code):
    found, said, kubernetes = start(ended(*end))
    assert (found, f"It was {end[1]}." in said) == (code, True)
    (created,) = kubernetes.created
    assert created["spec"] == TEMPLATE["spec"]["jobTemplate"]
    assert (created["kind"], created["metadata"]["name"]) == ("RayJob", "nightloupe-night-1")
    assert kubernetes.asked[0] == ("GET", f"{HERE}/raycronjobs/nightloupe-night")
    assert kubernetes.asked[1] == ("POST", f"{HERE}/rayjobs")
    assert set(kubernetes.asked[2:]) == {("GET", f"{HERE}/rayjobs/nightloupe-night-1")}


def test_a_pod_that_follows_another_waits_for_the_same_night(start):
    found, _, kubernetes = start(ended("Complete", "SUCCEEDED"), [200, 409])
    assert (found, len(kubernetes.created)) == (0, 1)


def test_a_server_that_is_busy_for_a_while_is_asked_again(start):
    found, said, _ = start(ended("Complete", "SUCCEEDED"), [503, 429, 200, 200, 500])
    assert (found, said.count("asking again")) == (0, 3)


def test_a_refusal_is_said_and_not_repeated(start):
    found, said, kubernetes = start(ended("Complete", "SUCCEEDED"), [403])
    assert (found, len(kubernetes.asked)) == (2, 1)
    assert "error: raycronjobs/nightloupe-night: 403" in said
