"""Manifests for KubeRay: against its own schemas where they are, and against the project always."""

from __future__ import annotations

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
#: A kind of manifest -> its file, and the name of KubeRay's definition of it.
FILES = {
    "cluster": ("cluster/cluster.yaml", "rayclusters"),
    "job": ("job/job.yaml", "rayjobs"),
    "cronjob": ("night/cronjob.yaml", "raycronjobs"),
}
ENTRYPOINT = "python -m jobs.nightly --config /etc/nightloupe/night.toml"
GIB = 2**30
RIGHTS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
#: The share of a node's memory that Ray keeps for its object store.
OBJECT_STORE = 0.3


def manifest(name: str) -> dict:
    return yaml.safe_load((PLACE / FILES[name][0]).read_text())


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
    file = DATA / "kuberay" / f"{FILES[request.param][1]}.yaml"
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
    assert longest + max(ttls(job, "DeleteCluster").values()) < 24 * 3600
    assert "suspend" not in spec  # KubeRay 1.7.0 makes up for every night that it left out


def ttls(job: dict, policy: str) -> dict[str, int]:
    """After how many seconds a policy follows each end of a job."""
    rules = job["deletionStrategy"]["deletionRules"]
    conditions = [dict(rule["condition"]) for rule in rules if rule["policy"] == policy]
    return {c.get("jobStatus", c.get("jobDeploymentStatus")): c["ttlSeconds"] for c in conditions}


@pytest.mark.parametrize("name", ["job", "cronjob"])
def test_clusters_and_jobs_of_old_nights_are_deleted(name):
    """The rules of ValidateRayJobSpec in KubeRay 1.7.0."""
    job = job_of(name)
    assert ttls(job, "DeleteCluster") == {"SUCCEEDED": 600, "Failed": 600}
    assert ttls(job, "DeleteSelf") == {"SUCCEEDED": 7 * 86400, "Failed": 7 * 86400}
    assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "suspend"} & set(job)
    assert len(job["deletionStrategy"]["deletionRules"]) == 4


@pytest.mark.parametrize("name", ["job", "cronjob"])
def test_a_night_is_submitted_without_a_pod_and_never_on_a_second_cluster(name):
    job = job_of(name)
    assert (job["submissionMode"], job["backoffLimit"]) == ("HTTPMode", 0)
    assert "submitterPodTemplate" not in job


def test_a_busy_night_is_no_failure():
    assert commands.settings_of(ENTRYPOINT.split()).busy_code == 0


def test_the_gate_that_the_schedule_needs_is_opened_and_the_version_named():
    text = (PLACE / "operator.yaml").read_text()
    gates = {gate["name"]: gate["enabled"] for gate in yaml.safe_load(text)["featureGates"]}
    assert gates == {"RayCronJob": True, "RayJobDeletionPolicy": True}
    guide = (ROOT / "docs" / "guide.md").read_text()
    for said in (text, guide):
        assert "--version 1.7.0" in said
        assert "--values deploy/kuberay/operator.yaml" in said


def test_one_prometheus_selects_the_operators_monitor_and_the_projects():
    """kube-prometheus-stack passes over what does not carry its label."""
    metrics = yaml.safe_load((PLACE / "operator.yaml").read_text())["metrics"]
    ours = yaml.safe_load((PLACE / "monitoring" / "kustomization.yaml").read_text())["labels"]
    assert [{"pairs": metrics["serviceMonitor"]["additionalLabels"]}] == ours


def test_a_night_by_hand_has_a_name_that_no_other_night_has():
    """start_night.py takes a RayJob of its name for its own, also one that ended days ago."""
    text = (PLACE / "batch" / "kustomization.yaml").read_text()
    (line,) = [line for line in text.splitlines() if " create job " in line]
    assert line.endswith('"nightloupe-night-$(date +%s)"')


def test_the_settings_are_where_the_command_looks():
    (head,) = pods_of("cronjob")["head"]["containers"]
    (mount,) = head["volumeMounts"]
    (volume,) = pods_of("cronjob")["head"]["volumes"]
    assert volume["name"] == mount["name"]
    kustomization = yaml.safe_load((PLACE / "night" / "kustomization.yaml").read_text())
    generated = kustomization["configMapGenerator"]
    files = {entry["name"]: entry.get("files") for entry in generated}
    assert files[volume["configMap"]["name"]] == ["night.toml"]
    assert ENTRYPOINT.endswith(f"{mount['mountPath']}/night.toml")


def test_one_file_names_the_image_for_every_node_and_its_ray_is_the_projects():
    naming = [f for f in PLACE.rglob("*.yaml") if "REGISTRY" in f.read_text()]
    assert naming == [PLACE / "image" / "kustomization.yaml"]
    (image,) = yaml.safe_load(naming[0].read_text())["images"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (image["newName"], image["newTag"]) == ("REGISTRY/nightloupe", project["version"])
    used = {c["image"] for pod in pods_of("cluster").values() for c in pod["containers"]}
    assert used == {image["name"]}
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
    for file in PLACE.rglob("*.yaml"):
        assert "Secret" not in [d.get("kind") for d in yaml.safe_load_all(file.read_text())]


def is_restricted(pod: dict) -> bool:
    """Whether the Pod Security Standard `restricted` lets a pod in."""
    user = pod["securityContext"]
    return (
        user["runAsNonRoot"]
        and user["seccompProfile"] == {"type": "RuntimeDefault"}
        and all(container["securityContext"] == RIGHTS for container in pod["containers"])
    )


def test_pods_have_no_rights_that_they_do_not_need():
    for name, pod in pods_of("cluster").items():
        assert is_restricted(pod)
        assert pod["serviceAccountName"] == "nightloupe"
        assert pod.get("automountServiceAccountToken", True) == (name == "head")  # it scales
    assert cluster_of("cluster")["autoscalerOptions"]["securityContext"] == RIGHTS
    namespace = yaml.safe_load((PLACE / "night" / "account.yaml").read_text().split("---")[0])
    assert "enforce: restricted" in yaml.safe_dump(namespace["metadata"]["labels"])


def test_the_machine_of_the_head_is_left_alone():
    annotations = cluster_of("cluster")["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }


def test_only_the_pods_themselves_the_operator_and_prometheus_reach_rays_ports():
    nobody, ours = yaml.safe_load_all((PLACE / "night" / "network.yaml").read_text())
    assert nobody["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    label = cluster_of("cluster")["headGroupSpec"]["template"]["metadata"]["labels"]
    assert ours["spec"]["podSelector"] == {"matchLabels": label}
    reached = {
        yaml.safe_dump(rule["from"]).split()[-1]: [port["port"] for port in rule.get("ports", [])]
        for rule in ours["spec"]["ingress"]
    }
    metrics = [8080, 44217, 44227]
    assert reached == {"nightloupe": [], "kuberay-system": [8265], "monitoring": metrics}
    (head,) = pods_of("cluster")["head"]["containers"]
    named = {port["name"]: port["containerPort"] for port in head["ports"]}
    monitor = yaml.safe_load((PLACE / "monitoring" / "pods.yaml").read_text())["spec"]
    assert [named[one["port"]] for one in monitor["podMetricsEndpoints"]] == metrics
    assert monitor["selector"]["matchLabels"] == label


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
