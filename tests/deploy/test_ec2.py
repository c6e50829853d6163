"""The cluster on EC2: against Ray's own schema and functions, and Amazon's policies in moto."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from jobs import fit, nightly
from pipelines.cluster import resources
from tests.conftest import ROOT
from tests.deploy import commands, image
from tests.deploy.test_image import PROJECT

DEPLOY = ROOT / "deploy"
AWS = yaml.safe_load((DEPLOY / "aws.yaml").read_text())
TYPES = AWS["available_node_types"]


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
    assert AWS["docker"]["image"] == f"REGISTRY/nightloupe:{PROJECT['version']}"
    assert "--ulimit=nofile=65536:65536" in AWS["docker"]["run_options"]
    assert [AWS[f"{who}setup_commands"] for who in ("", "head_", "worker_")] == [[], [], []]


@pytest.mark.parametrize(("number", "job"), [(0, fit), (1, nightly)])
def test_the_resources_of_the_clusters_own_examples_fit_into_it(number, job, monkeypatch):
    lines = (DEPLOY / "aws.yaml").read_text().splitlines()
    submitted = [line for line in lines if "job submit" in line]
    assert len(submitted) == 2
    words = shlex.split(submitted[number].lstrip("# "))
    settings = commands.settings_of(words[words.index("--") + 1 :])
    assert isinstance(settings, job.Settings)
    types = AWS["available_node_types"].values()
    has = {
        name: float(sum(t.get("max_workers", 0) * t["resources"].get(name, 0) for t in types))
        for name in ("CPU", "GPU")
    }
    monkeypatch.setattr(resources, "_resources", lambda: has)
    assert settings.resources.count() == 2
    assert settings.resources.wait_for_nodes


def test_the_page_asks_for_as_many_processors_as_the_cluster_has():
    """Of the machines that are no spot machines, and of the others: two quotas at Amazon."""
    page = (ROOT / "docs" / "deploy.md").read_text()
    asked = re.findall(r"(\d+)(?: vCPUs)? of\s+`(Running|All G)", page)
    spot = {"InstanceMarketOptions"}
    owned = {"m7i.large": 2, "c7i.2xlarge": 8, "g6.xlarge": 4}
    needed = {"Running": 0, "All G": 0}
    for kind in TYPES.values():
        node = kind["node_config"]
        quota = "All G" if spot & set(node) else "Running"
        needed[quota] += owned[node["InstanceType"]] * kind.get("max_workers", 1)
    assert {name: int(count) for count, name in asked} == needed


def test_every_command_of_the_page_can_be_typed():
    page = (ROOT / "docs" / "deploy.md").read_text()
    section = page.split("## EC2 from an empty account")[1].split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    lines = list(commands.lines_of(block))
    for line in lines:
        commands.check(line)
    region = AWS["provider"]["region"]
    assert lines[0] == f"export AWS_DEFAULT_REGION={region}"
    image = AWS["docker"]["image"]
    assert [line for line in lines if image in line][-1] == f"docker push {image}"


def test_no_port_is_opened_by_ray():
    """Its own security group lets the whole internet reach port 22."""
    from ray.autoscaler._private.aws import config

    given = copy.deepcopy(AWS)
    assert config._configure_security_group(given) == AWS  # would ask Amazon for a group otherwise
    groups = {tuple(kind["node_config"]["SecurityGroupIds"]) for kind in TYPES.values()}
    assert groups == {("sg-00000000000000000",)}


def test_files_of_the_host_lie_where_the_image_has_its_home():
    """The command with which Ray's launcher starts the container."""
    from ray.autoscaler._private.docker import docker_start_cmds

    options = [*AWS["docker"]["run_options"], *TYPES["detectors"]["docker"]["worker_run_options"]]
    home = image.environment()["HOME"]
    line = docker_start_cmds(
        *(AWS["auth"]["ssh_user"], AWS["docker"]["image"], AWS["file_mounts"]),
        *("nightloupe", options, AWS["cluster_name"], home, "docker"),
    )
    words = shlex.split(line)
    mounted = {words[n + 1].split(":")[1] for n, word in enumerate(words) if word == "-v"}
    assert mounted == {f"{home}/.ray/auth_token", f"{home}/night.toml"}
    assert words[-2:] == [AWS["docker"]["image"], "bash"]
    for source in AWS["file_mounts"].values():
        assert source.startswith("~") or (ROOT / source).exists()


def test_gpus_are_visible_on_the_nodes_that_have_one_and_asked_for_nowhere_else():
    visible = "--env=NVIDIA_VISIBLE_DEVICES=all"
    shown = {
        name: visible in kind.get("docker", {}).get("worker_run_options", [])
        for name, kind in TYPES.items()
    }
    assert shown == {name: "GPU" in kind["resources"] for name, kind in TYPES.items()}
    assert visible not in AWS["docker"]["run_options"]
    assert "NVIDIA_VISIBLE_DEVICES" not in image.environment()


def test_the_role_may_do_what_ray_does_and_hands_on_itself_alone():
    policy = json.loads((DEPLOY / "ec2" / "iam-policy.json").read_text())
    allowed = {a: s for s in policy["Statement"] for a in s["Action"]}
    assert all(s["Effect"] == "Allow" for s in policy["Statement"])
    assert set(allowed) >= {
        *("ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags", "ec2:DescribeInstances"),
        *("ec2:DescribeInstanceTypes", "ec2:DescribeImages", "ec2:DescribeSubnets"),
        *("iam:PassRole", "ecr:GetAuthorizationToken", "ecr:BatchGetImage"),
        *("ecr:GetDownloadUrlForLayer", "s3:ListBucket", "s3:GetObject", "s3:PutObject"),
        "s3:DeleteObject",
    }
    assert not [action for action in allowed if "*" in action]
    everywhere = {a for a, s in allowed.items() if s["Resource"] == "*" and "Condition" not in s}
    assert {a for a in everywhere if ":Describe" not in a} == {"ecr:GetAuthorizationToken"}
    role = allowed["iam:PassRole"]
    profile = AWS["available_node_types"]["head"]["node_config"]["IamInstanceProfile"]["Arn"]
    assert role["Resource"] == profile.replace("instance-profile", "role")
    assert "ec2.amazonaws.com" in json.dumps(role["Condition"])
    stopping = allowed["ec2:TerminateInstances"]["Condition"]["StringEquals"]
    assert stopping == {"aws:ResourceTag/ray-cluster-name": AWS["cluster_name"]}


@pytest.fixture
def night(tmp_path):
    """Run ec2/night with a `ray` that only notes what it is told; its code, and the notes."""

    def run(**codes: int) -> tuple[int, list[str]]:
        notes = tmp_path / "notes"
        notes.unlink(missing_ok=True)
        cases = " ".join(f"{name}) exit {code};;" for name, code in codes.items())
        program = f'#!/bin/sh\necho "$@" >>{notes}\ncase $1 in {cases} esac\n'
        (tmp_path / "ray").write_text(program)
        (tmp_path / "ray").chmod(stat.S_IRWXU)
        script = (DEPLOY / "ec2" / "night").read_text().replace("$PWD/.venv/bin", str(tmp_path))
        (folder := tmp_path / "deploy" / "ec2").mkdir(parents=True, exist_ok=True)
        (folder / "night").write_text(script)
        done = subprocess.run(
            ["bash", folder / "night", "--resources.workers", "1"],
            env=os.environ | {"PAUSE": "0", "LOCK": str(tmp_path / "lock")},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, notes.read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("codes", "code", "words"),
    [
        ({}, 0, ["up", "exec", "down"]),
        ({"exec": 1}, 1, ["up", "exec", "down"]),
        ({"up": 1}, 1, ["up", "down"]),
        ({"down": 1}, 1, ["up", "exec", "down", "down", "down"]),
    ],
)
def test_a_night_stops_every_machine_whatever_happens(night, codes, code, words):
    found, notes = night(**codes)
    assert (found, [note.split()[0] for note in notes]) == (code, words)


def test_the_night_on_the_head_is_a_night(night):
    _, notes = night()
    (line,) = [note for note in notes if note.startswith("exec ")]
    start = re.search(r"RAY_ADDRESS=auto (python .*)", line)
    words = shlex.split(start[1].replace("~/night.toml", "night.toml"))
    settings = commands.settings_of(words)
    assert isinstance(settings, nightly.Settings)
    assert (settings.busy_code, settings.resources.workers) == (0, 1)
