"""The services of one machine: they agree with the project, each other and Compose's own schema."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy import commands
from tests.deploy.test_image import PROJECT, SECRETS

DEPLOY = ROOT / "deploy"
FILES = ("compose.yaml", "compose.gpu.yaml", "compose.memory.yaml")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = {"mlflow", "buckets", "head", "worker"}
#: Of the S3 server: the tracker's account, and that which makes buckets.
ACCOUNTS = {
    f"{who}_{key}"
    for who in ("MLFLOW", "S3_ADMIN")
    for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
}


def overriding(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text())["services"]


@pytest.mark.parametrize("file", FILES)
def test_compose_takes_every_file(file):
    vendored = pytest.importorskip("check_jsonschema")
    place = Path(vendored.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = jsonschema.Draft202012Validator(json.loads(place.read_text()))
    document = yaml.safe_load((DEPLOY / file).read_text())
    assert [error.message for error in schema.iter_errors(document)] == []
    document["services"]["worker"]["gpu_count"] = 1
    assert any("gpu_count" in error.message for error in schema.iter_errors(document))


def test_one_service_builds_the_image_and_the_others_wait_for_it():
    """Builds of one tag by several services collide when they are exported."""
    assert [name for name, one in SERVICES.items() if "build" in one] == ["mlflow"]
    policies = {name: SERVICES[name]["pull_policy"] for name in OURS}
    assert policies == dict.fromkeys(OURS, "never") | {"mlflow": "build"}


def test_the_object_store_fits_into_shared_memory_and_somebody_reaps_processes():
    for name in ("head", "worker"):
        (flag,) = [w for w in SERVICES[name]["command"] if w.startswith("--object-store-memory=")]
        # Ray wants a tenth more, or takes /tmp.
        assert int(flag.split("=")[1]) * 1.1 < 2 * 2**30
        assert SERVICES[name]["shm_size"] == "2gb"
        assert SERVICES[name]["init"]


def test_an_override_names_services_that_there_are():
    memory = overriding("compose.memory.yaml")
    assert set(memory) == set(SERVICES) - {"buckets"}
    assert all(set(limit) == {"mem_limit"} for limit in memory.values())
    (device,) = overriding("compose.gpu.yaml")["worker"]["deploy"]["resources"]["reservations"][
        "devices"
    ]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_tracker_and_ray_have_an_account_each_for_a_bucket_each():
    text = re.sub(r"\$\{(\w+)\}", r"\1", COMPOSE["configs"]["accounts"]["content"])
    accounts = {one["name"]: one for one in json.loads(text)["identities"]}
    assert {name: one["actions"] for name, one in accounts.items()} == {
        "admin": ["Admin"],
        "ray": ["Read:warehouse", "Write:warehouse", "List:warehouse"],
        "mlflow": ["Read:mlflow", "Write:mlflow", "List:mlflow"],
    }
    used = {"buckets": "admin", "head": "ray", "worker": "ray", "mlflow": "mlflow"}
    for service, name in used.items():
        (key,) = accounts[name]["credentials"]
        given = SERVICES[service]["environment"]["AWS_ACCESS_KEY_ID"]
        assert given == f"${{{key['accessKey']}:?fill in deploy/.env}}"
    command = SERVICES["s3"]["command"]
    (config,) = SERVICES["s3"]["configs"]
    assert f"-s3.config={config['target']}" in command
    # The filer asks nobody for a key, and nobody needs the catalogues, which listen where S3 does.
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} <= set(command)
    assert {"-s3.port.iceberg=0", "-s3.port.lance=0"} <= set(command)


def test_compose_asks_for_what_the_example_names_and_the_example_holds_no_value():
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(given.values()) == {""}
    text = (DEPLOY / "compose.yaml").read_text()
    text = text.split("\nconfigs:")[0]  # what is asked for above
    asked = dict(re.findall(r"\$\{(\w+)([^}]*)\}", text))
    assert set(asked) == set(given) == SECRETS | ACCOUNTS | {"TORCH_INDEX"}
    assert all(asked[name].startswith(":?") for name in SECRETS | ACCOUNTS)  # empty is refused
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_services_know_each_other_by_their_names():
    services = SERVICES
    text = json.dumps(services)
    hosts = set(re.findall(r"(?:://|@|--address=|\")(\w+)(?::\d{4}|/mlflow)", text))
    assert hosts - {"localhost"} <= set(services), hosts
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for name, how in service.get("depends_on", {}).items():
            once = how["condition"] == "service_completed_successfully"
            assert once or services[name]["healthcheck"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
    (program,) = [word for word in services["buckets"]["command"] if "create_bucket" in word]
    compile(program, "compose.yaml", "exec")
    buckets = re.findall(r'"(\w+)"', re.findall(r"for name in (\{.*?\})", program)[0])
    settings = tomllib.loads((DEPLOY / "night.toml").read_text())
    for place in (settings["archive"], settings["out"]):
        assert place.removeprefix("s3://").split("/")[0] in buckets
    (artifacts,) = [w for w in services["mlflow"]["command"] if "artifacts-destination" in w]
    assert artifacts.split("s3://")[1] in buckets


def test_every_node_runs_the_same_image_of_this_version():
    images = {name: service["image"] for name, service in SERVICES.items()}
    ours = {images.pop(name) for name in OURS}
    assert ours == {f"nightloupe:{PROJECT['version']}"}
    for image in images.values():
        assert re.fullmatch(r"[\w/]+:\d[\w.-]*", image), "a version, never `latest`"


def test_the_commands_of_the_services_are_commands():
    for name in ("mlflow", "head", "worker"):
        commands.check(shlex.join(SERVICES[name]["command"]))
    for name in ("postgres", "s3"):
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
