"""Manifests for KubeRay: against its own schemas where they are, and against the project always."""

from __future__ import annotations

import shutil
import subprocess
import tomllib

import jsonschema
import pytest
import yaml

from jobs import nightly
from pipelines.cluster import resources as cluster
from pipelines.cluster.memory import PROCESS_BYTES
from pipelines.cluster.resources import Resources
from tests.conftest import DATA, ROOT
from tests.deploy import commands

PLACE = ROOT / "deploy" / "kuberay"
FILES = {"cluster": "rayclusters", "job": "rayjobs", "cronjob": "raycronjobs"}
ENTRYPOINT = "python -m jobs.nightly --config /etc/nightloupe/night.toml"
GIB = 2**30
#: The share of a node's memory that Ray keeps for its object store.
OBJECT_STORE = 0.3


def manifest(name: str) -> dict:
    return yaml.safe_load((PLACE / f"{name}.yaml").read_text())


def job_of(name: str) -> dict:
    spec = manifest(name)["spec"]
    return spec["jobTemplate"] if name == "cronjob" else spec


def cluster_of(name: str) -> dict:
    return manifest(name)["spec"] if name == "cluster" else job_of(name)["rayClusterSpec"]


def pods_of(name: str) -> dict[str, dict]:
    found = cluster_of(name)
    groups = {group["groupName"]: group for group in found["workerGroupSpecs"]}
    return {
        key: g["template"]["spec"] for key, g in {"head": found["headGroupSpec"], **groups}.items()
    }


def closed(schema: object) -> object:
    """A schema that lets no unknown field through, but where it names no field at all."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "type" in found and isinstance(found.get("properties"), dict):
        found.setdefault("additionalProperties", False)
    return found


@pytest.fixture(scope="module", params=FILES)
def validator(request):
    file = DATA / "kuberay" / f"{FILES[request.param]}.yaml"
    if not file.exists():
        pytest.skip(f"KubeRay's definitions are not at {file}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(file.read_text(), loader)["spec"]["versions"]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    return request.param, jsonschema.Draft202012Validator(closed(schema))


def test_a_manifest_is_what_kuberay_takes(validator):
    name, schema = validator
    assert [error.message for error in schema.iter_errors(manifest(name))] == []


def test_fields_that_kuberay_does_not_know_are_found(validator):
    name, schema = validator
    found = manifest(name)
    found["spec"]["concurrencyPolicy"] = "Forbid"
    deep = found["spec"].get("jobTemplate", found["spec"])
    deep.get("rayClusterSpec", deep)["headGroupSpec"]["template"]["spec"]["image"] = "here"
    errors = sorted(error.message for error in schema.iter_errors(found))
    assert ["concurrencyPolicy" in errors[0], "image" in errors[1]] == [True, True]
    assert len(errors) == 2


def test_all_three_describe_the_same_cluster():
    assert cluster_of("job") == cluster_of("cluster")
    assert job_of("cronjob") == job_of("job")


@pytest.mark.parametrize("name", ["job", "cronjob"])
def test_a_night_is_one_command_whose_settings_parse(name):
    assert job_of(name)["entrypoint"] == ENTRYPOINT
    assert isinstance(commands.settings_of(ENTRYPOINT.split()), nightly.Settings)


def test_a_night_ends_before_the_next_one_starts():
    job, spec = job_of("cronjob"), manifest("cronjob")["spec"]
    minute, hour, *every_day = spec["schedule"].split()
    assert 0 <= int(minute) < 60
    assert 0 <= int(hour) < 24
    assert every_day == ["*", "*", "*"]
    assert "/" in spec["timeZone"]
    longest = job["preRunningDeadlineSeconds"] + job["activeDeadlineSeconds"]
    longest += job["ttlSecondsAfterFinished"]
    assert longest * (1 + job["backoffLimit"]) < 24 * 3600
    assert job["shutdownAfterJobFinishes"]


def test_the_settings_are_where_the_command_looks():
    (head,) = pods_of("cronjob")["head"]["containers"]
    (mount,) = head["volumeMounts"]
    (volume,) = pods_of("cronjob")["head"]["volumes"]
    assert volume["name"] == mount["name"]
    generated = yaml.safe_load((PLACE / "kustomization.yaml").read_text())["configMapGenerator"]
    files = {entry["name"]: entry.get("files") for entry in generated}
    assert files[volume["configMap"]["name"]] == ["night.toml"]
    assert ENTRYPOINT.endswith(f"{mount['mountPath']}/night.toml")


def test_every_node_is_the_same_image_and_ray_that_the_project_pins():
    images = {c["image"] for pod in pods_of("cluster").values() for c in pod["containers"]}
    assert images == {"REGISTRY/nightloupe:0.1.0"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert images.pop().endswith(f"nightloupe:{project['version']}")
    pinned = f"ray=={cluster_of('cluster')['rayVersion']}"
    assert pinned in (ROOT / "constraints.txt").read_text().splitlines()


def test_secrets_are_named_and_never_written():
    asked = cluster_of("cluster")["authOptions"]
    assert asked == {"mode": "token", "secretName": "nightloupe-ray-token"}
    for pod in pods_of("cluster").values():
        (container,) = pod["containers"]
        assert "env" not in container
        named = [{k: v["name"] for k, v in one.items()} for one in container["envFrom"]]
        assert named == [
            {"configMapRef": "nightloupe-places"},
            {"secretRef": "nightloupe-mlflow"},
            {"secretRef": "nightloupe-s3"},
        ]
    kinds = {
        document["kind"]
        for file in PLACE.glob("*.yaml")
        for document in yaml.safe_load_all(file.read_text())
    }
    assert kinds == {
        *("Kustomization", "Namespace", "ServiceAccount"),
        *("RayCluster", "RayJob", "RayCronJob"),
    }


def test_pods_have_no_rights_that_they_do_not_need():
    for name, pod in pods_of("cluster").items():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["serviceAccountName"] == "nightloupe"
        assert pod.get("automountServiceAccountToken", True) == (name == "head")  # it scales
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def cluster_resources(replicas: str) -> dict[str, float]:
    """What Ray has with all groups at their `replicas`."""
    found = {"CPU": 0.0, "GPU": 0.0}
    for group in cluster_of("cronjob")["workerGroupSpecs"]:
        params = group["rayStartParams"]
        found["CPU"] += group[replicas] * float(params["num-cpus"])
        found["GPU"] += group[replicas] * float(params.get("num-gpus", 0))
    return found


@pytest.fixture
def resources() -> Resources:
    return commands.settings_of(ENTRYPOINT.split()).resources


def test_the_resources_fit_into_the_largest_cluster_and_wait_for_it(resources, monkeypatch):
    monkeypatch.setattr(cluster, "_resources", lambda: cluster_resources("maxReplicas"))
    assert resources.count() == resources.workers == 2
    assert resources.max_readers(resources.workers) >= 20
    smallest = cluster_resources("minReplicas")
    assert smallest["GPU"] == 0  # no GPU is paid for while an archive is listed
    assert resources.wait_for_nodes >= 600


def test_ray_is_told_the_resources_that_its_pod_has():
    found = cluster_of("cronjob")
    assert found["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in found["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        limits, params = container["resources"]["limits"], group["rayStartParams"]
        assert container["resources"]["requests"] == limits
        assert limits["cpu"] == params["num-cpus"]
        assert limits.get("nvidia.com/gpu") == params.get("num-gpus")
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_a_worker_with_all_the_detectors_it_may_hold_fits_into_its_pod(resources):
    backbone = GIB // 4  # a WideResNet-50-2
    needed = PROCESS_BYTES + 2 * (backbone + resources.detector_cache)
    for pod in list(pods_of("cronjob").values())[1:]:
        limit = pod["containers"][0]["resources"]["limits"]["memory"]
        assert limit.endswith("Gi")
        assert needed < int(limit.removesuffix("Gi")) * GIB * (1 - OBJECT_STORE)


def test_kustomize_puts_it_together():
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    made = subprocess.run(
        ["kubectl", "kustomize", str(PLACE)], capture_output=True, text=True, check=True
    )
    found = {d["kind"]: d for d in yaml.safe_load_all(made.stdout) if d["kind"] != "ConfigMap"}
    assert set(found) == {"Namespace", "ServiceAccount", "RayCronJob"}
    assert found["RayCronJob"]["spec"] == manifest("cronjob")["spec"]
    assert "python" in found["RayCronJob"]["spec"]["jobTemplate"]["entrypoint"]
    assert {d["metadata"].get("namespace", "nightloupe") for d in found.values()} == {"nightloupe"}
