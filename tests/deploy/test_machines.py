"""Compose file, EC2 cluster and timers: they agree with the project and with each other."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from jobs import nightly
from jobs.cli import entry
from pipelines.cluster import resources
from pipelines.cluster.resources import Resources
from tests.conftest import ROOT
from tests.deploy import commands

DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
AWS = yaml.safe_load((DEPLOY / "aws.yaml").read_text())
SERVICE = (DEPLOY / "systemd" / "nightloupe.service").read_text()
SECRETS = {"RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_compose_asks_for_what_the_example_names_and_the_example_holds_no_value():
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(given.values()) == {""}
    text = (DEPLOY / "compose.yaml").read_text()
    asked = dict(re.findall(r"\$\{(\w+)([^}]*)\}", text))
    assert set(asked) == set(given) == SECRETS | {"TORCH_INDEX"}
    assert all(asked[name].startswith(":?") for name in SECRETS)  # empty is refused
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_services_know_each_other_by_their_names():
    services = COMPOSE["services"]
    text = json.dumps(services)
    hosts = set(re.findall(r"(?:://|@|--address=|\")(\w+)(?::\d{4}|/mlflow)", text))
    assert hosts - {"localhost"} <= set(services), hosts
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for name in service.get("depends_on", {}):
            assert services[name]["healthcheck"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
    buckets = services["s3"]["environment"]["S3_BUCKET"].split(",")
    settings = tomllib.loads((DEPLOY / "night.toml").read_text())
    for place in (settings["archive"], settings["out"]):
        assert place.removeprefix("s3://").split("/")[0] in buckets
    (artifacts,) = [w for w in services["mlflow"]["command"] if "artifacts-destination" in w]
    assert artifacts.split("s3://")[1] in buckets


def test_every_node_runs_the_same_image_of_this_version():
    images = {name: service["image"] for name, service in COMPOSE["services"].items()}
    ours = {images.pop(name) for name in ("head", "worker", "mlflow")}
    assert ours == {f"nightloupe:{PROJECT['version']}"}
    assert AWS["docker"]["image"] == f"REGISTRY/nightloupe:{PROJECT['version']}"
    for image in images.values():
        assert re.fullmatch(r"[\w/]+:\d[\w.-]*", image), "a version, never `latest`"


def test_the_commands_of_the_services_are_commands():
    for name in ("mlflow", "head", "worker"):
        commands.check(shlex.join(COMPOSE["services"][name]["command"]))
    for name in ("postgres", "s3"):
        assert COMPOSE["services"][name]["healthcheck"]["test"][0] == "CMD"


def test_ray_takes_the_cluster_file():
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(AWS, json.loads(schema.read_text()))
    types = AWS["available_node_types"]
    assert AWS["head_node_type"] in types
    limits = [kind["max_workers"] for kind in types.values() if "max_workers" in kind]
    assert AWS["max_workers"] == sum(limits)
    for line in AWS["head_start_ray_commands"] + AWS["worker_start_ray_commands"]:
        commands.check(line)
    (head,) = [line for line in AWS["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--env=RAY_AUTH_MODE=token" in AWS["docker"]["run_options"]


def test_the_resources_of_the_clusters_own_example_fit_into_it(monkeypatch):
    line = next(
        line for line in (DEPLOY / "aws.yaml").read_text().splitlines() if "job submit" in line
    )
    words = shlex.split(line.lstrip("# "))
    settings = commands.settings_of(words[words.index("--") + 1 :])
    assert isinstance(settings, nightly.Settings)
    types = AWS["available_node_types"].values()
    has = {
        name: float(sum(t.get("max_workers", 0) * t["resources"].get(name, 0) for t in types))
        for name in ("CPU", "GPU")
    }
    monkeypatch.setattr(resources, "_resources", lambda: has)
    assert settings.resources.count() == 2
    assert settings.resources.wait_for_nodes


@pytest.mark.parametrize("file", ["aws.yaml", "compose.yaml", "crontab", "local-stack"])
def test_the_commands_in_a_files_head_are_commands(file):
    head = re.match(r"(#.*\n)+", (DEPLOY / file).read_text())
    assert head
    told = re.findall(r"^#   (\S.*)$", head[0], re.MULTILINE)
    assert told or file == "crontab"
    for line in told:
        commands.check(line.rstrip("& "))


def test_the_unit_starts_a_night_whose_settings_parse():
    options = dict(
        line.split("=", 1) for line in SERVICE.splitlines() if "=" in line and line[0] != "#"
    )
    words = shlex.split(options["ExecStart"])
    assert isinstance(commands.settings_of(words), nightly.Settings)
    assert words[0].startswith(options["WorkingDirectory"])
    assert options["SuccessExitStatus"] == str(entry.BUSY)
    assert options["Type"] == "oneshot"


def test_systemd_takes_unit_and_timer(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", SERVICE, flags=re.MULTILINE)
    (tmp_path / "nightloupe.service").write_text(unit)
    shutil.copy(DEPLOY / "systemd" / "nightloupe.timer", tmp_path)
    files = [str(tmp_path / f"nightloupe.{kind}") for kind in ("service", "timer")]
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    mine = [line for line in found.stderr.splitlines() if "nightloupe" in line]
    assert (found.returncode, mine) == (0, [])


def test_the_crontab_starts_the_same_night():
    lines = (DEPLOY / "crontab").read_text().splitlines()
    (line,) = [line for line in lines if line[:1].isdigit()]
    minute, hour, *days, command = line.split(maxsplit=5)
    assert (minute, hour, days) == ("30", "1", ["*"] * 3)
    assert "OnCalendar=*-*-* 01:30:00" in (DEPLOY / "systemd/nightloupe.timer").read_text()
    assert "%" not in command  # cron takes it for the end of the line
    start = command[command.index(".venv/bin/python") : command.index(" >>")]
    assert isinstance(commands.settings_of(shlex.split(start)), nightly.Settings)


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("night.toml")), ids=str)
def test_an_example_of_a_nights_settings_loads(file):
    settings, _ = entry.parse(nightly.Settings, nightly.__doc__, ["--config", str(file)])
    assert settings.model == "models:/nightloupe@champion"
    assert isinstance(settings.resources, Resources)
    settings.path_parser()


def test_the_stack_says_what_it_lacks(tmp_path):
    asked = subprocess.run(
        [DEPLOY / "local-stack", "true"],
        env={"PATH": os.environ["PATH"], "PG_BIN": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 1
    assert f"error: no initdb in '{tmp_path}'" in asked.stderr
