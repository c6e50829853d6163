"""An Airflow DAG that runs the nights on Kubernetes: a RayJob each, a busy one counts as skipped.

Copy it into the folder of your DAGs, and beside it what this prints:

  kubectl kustomize deploy/kuberay/job > nightloupe-job.yaml

Needs apache-airflow-providers-cncf-kubernetes, and a connection `kubernetes_default` whose account
may create and get rayjobs, as the role in deploy/kuberay/batch/starter.yaml. Settings, secrets and
account of the pods are those of deploy/kuberay/night; its own schedule is to be deleted:

  kubectl --namespace nightloupe delete raycronjob nightloupe-night --cascade=orphan
"""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import yaml
from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.sdk import dag, get_current_context, task
from airflow.sdk.exceptions import AirflowException, AirflowSkipException

PLACE = {"group": "ray.io", "version": "v1", "plural": "rayjobs", "namespace": "nightloupe"}
JOB = Path(__file__).with_name("nightloupe-job.yaml")
ENDS = {"Complete", "Failed", "ValidationFailed"}


def outcome(status: dict) -> str:
    """What a RayJob's status means: `running`, `succeeded`, `busy` or `failed`."""
    if status.get("jobDeploymentStatus") not in ENDS:
        return "running"
    if status.get("jobStatus") == "SUCCEEDED":
        return "succeeded"
    return "busy" if "exit code 75" in status.get("message", "") else "failed"


@dag(
    schedule="30 1 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    max_active_runs=1,
    tags=["nightloupe"],
)
def nightloupe() -> None:
    """Every night."""

    @task(execution_timeout=datetime.timedelta(hours=9))
    def night() -> None:
        api, context = KubernetesHook(), get_current_context()
        body = yaml.safe_load(JOB.read_text())
        body["metadata"]["name"] = (
            f"nightloupe-night-{context['ds_nodash']}-{context['ti'].try_number}"
        )
        # 75 shows a night that met another one; 0 would hide it from the status.
        body["spec"]["entrypoint"] += " --busy_code 75"
        api.create_custom_object(body=body, **PLACE)
        while True:
            found = api.get_custom_object(name=body["metadata"]["name"], **PLACE)
            status = found.get("status", {})
            match outcome(status):
                case "succeeded":
                    return
                case "busy":
                    raise AirflowSkipException("another night is running")
                case "failed":
                    raise AirflowException(status.get("message", "the night failed"))
            time.sleep(30)

    night()


nightloupe()
