"""Timers and schedulers: each starts a night whose settings parse, and tells when it fails."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml

from jobs import nightly
from jobs.cli import entry
from pipelines.cluster.resources import Resources
from tests.conftest import ROOT
from tests.deploy import commands

DEPLOY = ROOT / "deploy"
SERVICE = (DEPLOY / "systemd" / "nightloupe.service").read_text()


def test_the_unit_starts_a_night_whose_settings_parse():
    options = dict(
        line.split("=", 1) for line in SERVICE.splitlines() if "=" in line and line[0] != "#"
    )
    words = shlex.split(options["ExecStart"])
    assert isinstance(commands.settings_of(words), nightly.Settings)
    assert words[0].startswith(options["WorkingDirectory"])
    assert options["SuccessExitStatus"] == f"{entry.BUSY} 130"
    assert (options["OnFailure"], options["UMask"]) == ("nightloupe-failed@%n.service", "0027")
    assert options["CapabilityBoundingSet"] == ""
    assert options["Type"] == "oneshot"


def test_systemd_takes_unit_and_timer(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", SERVICE, flags=re.MULTILINE)
    (tmp_path / "nightloupe.service").write_text(unit)
    shutil.copy(DEPLOY / "systemd" / "nightloupe-failed@.service", tmp_path)
    shutil.copy(DEPLOY / "systemd" / "nightloupe.timer", tmp_path)
    names = ("nightloupe.service", "nightloupe.timer", "nightloupe-failed@.service")
    files = [str(tmp_path / name) for name in names]
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    mine = [line for line in found.stderr.splitlines() if "nightloupe" in line]
    assert (found.returncode, mine) == (0, [])


def crontab(tmp_path: Path, code: int) -> str:
    """What cron would mail of a night that ends with a code."""
    (line,) = [li for li in (DEPLOY / "crontab").read_text().splitlines() if li[:1].isdigit()]
    command = line.split(maxsplit=5)[5]
    (program := tmp_path / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    (program / "python").write_text(f"#!/bin/sh\necho said\nexit {code}\n")
    (program / "python").chmod(stat.S_IRWXU)
    (tmp_path / "environment").write_text("A=b\n")
    command = command.replace("/opt/nightloupe", str(tmp_path))
    command = command.replace("/etc/nightloupe/environment", str(tmp_path / "environment"))
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_cron_mails_a_failed_night_and_no_other(tmp_path):
    assert [crontab(tmp_path, code) for code in (0, entry.BUSY)] == ["", ""]
    assert crontab(tmp_path, 1) == "the night failed with exit code 1:\nsaid\n"
    assert "MAILTO=" in (DEPLOY / "crontab").read_text()


def test_the_crontab_starts_the_same_night():
    lines = (DEPLOY / "crontab").read_text().splitlines()
    (line,) = [line for line in lines if line[:1].isdigit()]
    minute, hour, *days, command = line.split(maxsplit=5)
    assert (minute, hour, days) == ("30", "1", ["*"] * 3)
    assert "OnCalendar=*-*-* 01:30:00" in (DEPLOY / "systemd/nightloupe.timer").read_text()
    assert "%" not in command  # cron takes it for the end of the line
    start = command[command.index(".venv/bin/python") : command.index(" > ")]
    assert isinstance(commands.settings_of(shlex.split(start)), nightly.Settings)


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("night.toml")), ids=str)
def test_an_example_of_a_nights_settings_loads(file):
    settings, _ = entry.parse(nightly.Settings, nightly.__doc__, ["--config", str(file)])
    assert settings.model == "models:/nightloupe@champion"
    assert isinstance(settings.resources, Resources)
    settings.path_parser()


@pytest.mark.parametrize(
    "file", ["aws.yaml", "compose.yaml", "compose.gpu.yaml", "crontab", "local-stack", "try-image"]
)
def test_the_commands_in_a_files_head_are_commands(file):
    head = re.match(r"(#.*\n)+", (DEPLOY / file).read_text())
    assert head
    told = re.findall(r"^#   (\S.*)$", head[0], re.MULTILINE)
    assert told or file == "crontab"
    for line in told:
        commands.check(line.rstrip("& "))


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


@pytest.mark.parametrize("script", ["local-stack", "try-image", "ec2/night", "schedulers/slurm.sh"])
def test_bash_takes_every_script(script):
    subprocess.run(["bash", "-n", DEPLOY / script], check=True)


class Client:
    """A job server whose job says two lines and ends with `code`."""

    code: int | None = 0
    asked: list[str]

    def __init__(self, address: str) -> None:
        type(self).asked = [address]

    def submit_job(self, entrypoint: str) -> str:
        self.asked.append(entrypoint)
        return "job"

    async def tail_job_logs(self, job: str):
        for lines in ("one\n", "two\n"):
            yield lines

    def get_job_info(self, job: str):
        return SimpleNamespace(driver_exit_code=self.code)


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (75, 75), (1, 1), (None, 1)])
def test_a_submitted_night_ends_with_its_own_code(code, ends, monkeypatch, capsys):
    file = DEPLOY / "schedulers" / "submit_night.py"
    spec = importlib.util.spec_from_file_location("submit_night", file)
    submit_night = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(submit_night)
    monkeypatch.setattr(submit_night, "JobSubmissionClient", Client)
    monkeypatch.setattr(submit_night.signal, "signal", lambda *_: None)
    monkeypatch.setattr(Client, "code", code)
    assert submit_night.main("http://head:8265", ["--config", "a b.toml"]) == ends
    assert capsys.readouterr().out == "one\ntwo\n"
    entrypoint = "python -m jobs.nightly --config 'a b.toml'"
    assert Client.asked == ["http://head:8265", entrypoint]


def test_argo_takes_its_template():
    models = pytest.importorskip("hera.workflows.models")
    text = (DEPLOY / "schedulers" / "argo.yaml").read_text()
    document, *_ = yaml.safe_load_all(text)
    flow = models.CronWorkflow.model_validate(document)
    (template,) = flow.spec.workflow_spec.templates
    assert template.resource.action == "create"
    assert yaml.safe_load(template.resource.manifest)["kind"] == "RayJob"
    assert flow.spec.concurrency_policy == "Forbid"


def test_the_account_of_argos_workflow_has_the_rights_of_its_steps():
    text = (DEPLOY / "schedulers" / "argo.yaml").read_text()
    found = {document["kind"]: document for document in yaml.safe_load_all(text)}
    account = found["CronWorkflow"]["spec"]["workflowSpec"]["serviceAccountName"]
    assert account == found["ServiceAccount"]["metadata"]["name"]
    (subject,) = found["RoleBinding"]["subjects"]
    assert subject["name"] == account
    assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
    may = {
        (rule["apiGroups"][0], rule["resources"][0], verb)
        for rule in found["Role"]["rules"]
        for verb in rule["verbs"]
    }
    assert may == {
        *(("ray.io", "rayjobs", verb) for verb in ("create", "get")),
        *(("argoproj.io", "workflowtaskresults", verb) for verb in ("create", "patch")),
    }


def test_a_forges_schema_takes_the_workflow():
    vendored = pytest.importorskip("check_jsonschema")
    place = Path(vendored.__file__).parent / "builtin_schemas" / "vendor" / "github-workflows.json"
    workflow = yaml.safe_load((ROOT / ".github/workflows/deployment.yaml").read_text())
    workflow["on"] = workflow.pop(True)  # YAML 1.1 reads `on` as a truth value
    schema = jsonschema.Draft7Validator(json.loads(place.read_text()))
    assert [error.message for error in schema.iter_errors(workflow)] == []
    assert set(workflow["jobs"]) == {"image", "compose", "kubernetes"}
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            named = re.findall(r"(?:deploy|tests)/[\w./-]+", step.get("run", ""))
            assert [n for n in named if n != "deploy/.env" and not (ROOT / n).exists()] == []
