"""Start the RayJob that the RayCronJob `nightloupe-night` describes, wait, and exit as it ended.

Runs in a pod of the CronJob beside this file, with the standard library alone. NIGHT names the
RayJob. Exit codes: 0 the night succeeded, 1 it failed, 2 Kubernetes refused, 3 it did not answer.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
SERVER = os.environ.get("SERVER", "https://kubernetes.default.svc")
POLL_SECONDS = float(os.environ.get("POLL_SECONDS", "20"))
#: How often Kubernetes may fail to answer in a row: ten minutes.
ATTEMPTS = 30
TEMPLATE = "nightloupe-night"


def ask(path: str, body: dict | None = None) -> dict:
    """The answer of Kubernetes' API, below the namespace of this pod.

    Raises HTTPError if it refuses, OSError if it does not answer.
    """
    namespace = (ACCOUNT / "namespace").read_text()
    request = urllib.request.Request(
        f"{SERVER}/apis/ray.io/v1/namespaces/{namespace}/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",  # renewed every hour
            "Content-Type": "application/json",
        },
    )
    certificate = ACCOUNT / "ca.crt"
    context = ssl.create_default_context(cafile=certificate) if certificate.exists() else None
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:
        return json.load(answer)


def patiently(path: str, body: dict | None = None) -> dict:
    """As `ask`, but Kubernetes may fail to answer for a while. Exits with 2 or 3 instead."""
    for attempt in range(ATTEMPTS):
        try:
            return ask(path, body)
        except urllib.error.HTTPError as error:
            if error.code == 409:  # this pod follows another one that has created it
                return {}
            if error.code < 500 and error.code != 429:
                print(f"error: {path}: {error.code} {error.reason}: {error.read().decode()[:500]}")
                sys.exit(2)
            print(f"{path}: {error}; asking again")
        except OSError as error:
            print(f"{path}: {error}; asking again")
        if attempt + 1 < ATTEMPTS:
            time.sleep(POLL_SECONDS)
    sys.exit(3)


def main(name: str) -> int:
    """Start the night, or find it started; its exit code."""
    template = patiently(f"raycronjobs/{TEMPLATE}")["spec"]["jobTemplate"]
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": template,
    }
    patiently("rayjobs", job)
    said = ""
    while True:
        status = patiently(f"rayjobs/{name}").get("status", {})
        state = status.get("jobDeploymentStatus", "")
        if state != said:
            print(f"{name}: {state}", flush=True)
            said = state
        if state in {"Complete", "Failed", "ValidationFailed"}:
            print(status.get("message", ""))
            return 0 if status.get("jobStatus") == "SUCCEEDED" else 1
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main(os.environ["NIGHT"]))
