"""The DAG for Airflow: what it makes of a RayJob's states, and that Airflow itself loads it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.conftest import ROOT

DAG = ROOT / "deploy" / "schedulers" / "airflow_night.py"
LOAD = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
(dag,) = bag.dags.values()
print(json.dumps([bag.import_errors, dag.dag_id, dag.task_ids, dag.max_active_runs, dag.catchup]))
"""


@pytest.fixture
def outcome(monkeypatch):
    """The function of the DAG's file, which is imported without Airflow."""

    def decorator(*args, **named):
        return lambda function: lambda *_: function

    names = ("providers.cncf.kubernetes.hooks.kubernetes", "sdk", "sdk.exceptions")
    for name in names:
        module = types.ModuleType(f"airflow.{name}")
        for each in ("AirflowException", "AirflowSkipException", "KubernetesHook"):
            setattr(module, each, object)
        module.dag = module.task = decorator
        module.get_current_context = dict
        monkeypatch.setitem(sys.modules, f"airflow.{name}", module)
    spec = importlib.util.spec_from_file_location("airflow_night", DAG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.outcome


@pytest.mark.parametrize(
    ("deployment", "job", "message", "expected"),
    [
        ("", "", "", "running"),
        ("Running", "RUNNING", "", "running"),
        ("Complete", "SUCCEEDED", "", "succeeded"),
        ("Complete", "STOPPED", "", "failed"),
        ("Failed", "FAILED", "Job entrypoint command failed with exit code 75, last logs", "busy"),
        ("Failed", "FAILED", "Job entrypoint command failed with exit code 1, last logs", "failed"),
        ("Failed", "", "the deadline has passed", "failed"),
        ("ValidationFailed", "", "", "failed"),
    ],
)
def test_a_rayjobs_status_is_a_nights_outcome(outcome, deployment, job, message, expected):
    status = {"jobDeploymentStatus": deployment, "jobStatus": job, "message": message}
    assert outcome(status) == expected


@pytest.mark.slow
@pytest.mark.campaign
def test_airflow_loads_it(tmp_path):
    """AIRFLOW_PYTHON names an interpreter with Airflow; otherwise pip installs it."""
    python = os.environ.get("AIRFLOW_PYTHON", str(tmp_path / "env" / "bin" / "python"))
    if not Path(python).exists():
        subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
        packages = ["apache-airflow>=3", "apache-airflow-providers-cncf-kubernetes"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    done = subprocess.run(
        [python, "-c", LOAD, DAG],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "AIRFLOW_HOME": str(tmp_path)}
        | {"AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [{}, "nightloupe", ["night"], 1, False]
