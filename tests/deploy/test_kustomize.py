"""What kustomize makes of the folders for Kubernetes, against the schemas of Kubernetes itself."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy.test_kuberay import is_restricted, manifest

PLACE = ROOT / "deploy" / "kuberay"
#: The oldest and the newest version of Kubernetes that are tried.
VERSIONS = ("1.30", "1.34")


def built(folder: str) -> dict[tuple[str, str], dict]:
    """The objects of a folder, by kind and name."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    made = subprocess.run(
        ["kubectl", "kustomize", str(PLACE / folder)], capture_output=True, text=True, check=True
    )
    return {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(made.stdout)}


def images(value: object) -> set[str]:
    """All images that an object names, at any depth."""
    if isinstance(value, list):
        return set().union(*map(images, value))
    if not isinstance(value, dict):
        return set()
    own = {value["image"]} if isinstance(value.get("image"), str) else set()
    return own.union(*map(images, value.values()))


@pytest.fixture(scope="module")
def folders() -> dict[str, dict]:
    return {name: built(name) for name in ("night", "batch", "cluster", "job", "monitoring")}


def test_every_folder_becomes_objects_of_one_namespace_and_one_image(folders):
    kinds = {name: sorted({kind for kind, _ in found}) for name, found in folders.items()}
    night = ["ConfigMap", "Namespace", "NetworkPolicy", "RayCronJob", "ServiceAccount"]
    assert kinds == {
        "night": night,
        "batch": sorted([*night, "CronJob", "Role", "RoleBinding"]),
        "cluster": ["RayCluster"],
        "job": ["RayJob"],
        "monitoring": ["PodMonitor", "PrometheusRule"],
    }
    for name, found in folders.items():
        spaces = {d["metadata"].get("namespace", "nightloupe") for d in found.values()}
        assert spaces == {"nightloupe"}
        named = set().union(*map(images, found.values()))
        assert named == (set() if name == "monitoring" else {"REGISTRY/nightloupe:0.1.0"})


def test_the_schedule_stays_what_the_file_says_and_is_a_mere_template_for_the_cronjob(folders):
    key = ("RayCronJob", "nightloupe-night")
    night, batch = folders["night"][key]["spec"], folders["batch"][key]["spec"]
    written = manifest("cronjob")["spec"]
    assert night["schedule"] == written["schedule"]
    assert night["jobTemplate"]["entrypoint"] == written["jobTemplate"]["entrypoint"]
    assert batch == night | {"suspend": True}
    cron = folders["batch"]["CronJob", "nightloupe-night"]["spec"]
    assert [cron[k] for k in ("schedule", "timeZone")] == [night["schedule"], night["timeZone"]]
    assert cron["concurrencyPolicy"] == "Forbid"


def test_the_pod_that_starts_a_night_may_do_that_and_nothing_else(folders):
    batch = folders["batch"]
    job = batch["CronJob", "nightloupe-night"]["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    assert is_restricted(pod)
    assert pod["serviceAccountName"] == "nightloupe-starter"
    role = batch["Role", "nightloupe-starter"]["rules"]
    may = {(rule["resources"][0], verb) for rule in role for verb in rule["verbs"]}
    assert may == {("raycronjobs", "get"), ("rayjobs", "create"), ("rayjobs", "get")}
    program = batch["ConfigMap", "nightloupe-start-night"]["data"]["start_night.py"]
    assert program == (PLACE / "batch" / "start_night.py").read_text()
    template = manifest("cronjob")["spec"]["jobTemplate"]
    longest = template["preRunningDeadlineSeconds"] + template["activeDeadlineSeconds"]
    assert job["activeDeadlineSeconds"] > longest


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object_of_its_own(folders, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    checked = set()
    for found in folders.values():
        for (kind, _), document in found.items():
            if "ray.io" in document["apiVersion"] or "coreos" in document["apiVersion"]:
                continue
            kubernetes_validate.validate(document, version, strict=True)
            checked.add(kind)
    assert checked >= {"ConfigMap", "CronJob", "Namespace", "NetworkPolicy", "Role", "RoleBinding"}
    wrong = dict(folders["batch"]["CronJob", "nightloupe-night"])
    wrong["spec"] = wrong["spec"] | {"concurrencyPolicies": "Forbid"}
    with pytest.raises(kubernetes_validate.ValidationError, match="concurrencyPolicies"):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_the_forges_small_cluster_is_the_one_that_is_deployed_without_its_workers():
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    place = ROOT / "tests" / "deploy" / "kind"
    made = subprocess.run(
        ["kubectl", "kustomize", str(place)], capture_output=True, text=True, check=True
    )
    job = yaml.safe_load(made.stdout)
    assert images(job) == {"nightloupe:0.1.0"}
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"] == []
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert is_restricted(pod)
    assert "nodeSelector" not in pod
