"""The guide: its commands are commands, its sums add up, and what it quotes is said."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import re
import shlex

import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy import commands

GUIDE = (ROOT / "docs" / "guide.md").read_text()


def blocks(kind: str) -> list[str]:
    """The fenced blocks of one kind."""
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL)


LINES = [line for block in blocks("bash") for line in commands.lines_of(block)]


@pytest.mark.parametrize("line", LINES)
def test_every_command_can_be_typed(line):
    commands.check(line)


def test_jobs_that_the_text_names_are_there():
    named = set(re.findall(r"(?:python -m )?jobs\.(\w+)", GUIDE))
    assert named >= {"plan", "fit", "nightly", "query", "compare", "score", "inventory", "evaluate"}
    assert [job for job in named if not (ROOT / "jobs" / f"{job}.py").exists()] == []


@pytest.mark.parametrize("line", ["python -m jobs.nightly --modle x", "ray job sumbit", "rm -r /"])
def test_a_command_that_is_none_is_found(line, capsys):
    with pytest.raises((AssertionError, SystemExit, pytest.fail.Exception)):
        commands.check(line)


def test_the_sums_add_up():
    (source,), (stated,) = blocks("python"), blocks("text")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(source, "docs/guide.md", "exec"), {})
    assert said.getvalue() == stated


def rows_below(words: str) -> list[str]:
    """The first cells of the table below a line."""
    table = GUIDE.split(words)[1].split("\n\n")[1]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


def test_what_the_project_is_quoted_with_it_says():
    files = [
        file for folder in ("ops", "pipelines", "jobs") for file in (ROOT / folder).rglob("*.py")
    ]
    said = "\n".join(file.read_text() for file in files)
    quoted = [cell.strip("`") for cell in rows_below("what is behind them:")]
    assert len(quoted) >= 10
    assert [words for words in quoted if words not in said] == []


def test_what_mlflow_is_quoted_with_it_says():
    from mlflow.server.security_utils import INVALID_HOST_MSG

    assert f"`{INVALID_HOST_MSG}`" in rows_below("Messages of other programs:")


def test_secrets_are_made_that_the_manifests_name():
    made = {
        words[words.index("generic") + 1]: words[words.index("generic") + 2]
        for words in map(shlex.split, LINES)
        if words[0] == "kubectl" and "generic" in words
    }
    pods = yaml.safe_load((ROOT / "deploy/kuberay/cluster/cluster.yaml").read_text())["spec"]
    container = pods["headGroupSpec"]["template"]["spec"]["containers"][0]
    named = {one["secretRef"]["name"] for one in container["envFrom"] if "secretRef" in one}
    assert set(made) == named | {pods["authOptions"]["secretName"]}
    account = yaml.safe_load(
        (ROOT / "deploy/kuberay/night/account.yaml").read_text().split("---")[1]
    )
    (registry,) = account["imagePullSecrets"]
    assert any(f"docker-registry {registry['name']} " in line for line in LINES)
    assert made[pods["authOptions"]["secretName"]].startswith("--from-literal=auth_token=")


def place_of(*words: str) -> int:
    """The number of the one line that has all these words."""
    (found,) = [n for n, line in enumerate(LINES) if all(word in line for word in words)]
    return found


def test_steps_stand_in_an_order_that_can_work():
    namespace = place_of("kubectl create namespace")
    secrets = [n for n, line in enumerate(LINES) if " create secret " in line]
    schedule = place_of("kubectl apply", "deploy/kuberay/night")
    cluster = place_of("kubectl apply", "deploy/kuberay/cluster")
    ready, forward = place_of("kubectl", " wait "), place_of("kubectl", "port-forward")
    fit, night = place_of("ray job submit", "jobs.fit"), place_of("kubectl create", "kuberay/job")
    steps = [namespace, *secrets, schedule, cluster, ready, forward, fit, night]
    assert steps == sorted(steps)
    name = yaml.safe_load((ROOT / "deploy/kuberay/cluster/cluster.yaml").read_text())["metadata"]
    assert f"raycluster/{name['name']} --for=condition=RayClusterProvisioned" in LINES[ready]
    assert f"service/{name['name']}-head-svc 8265" in LINES[forward]


def test_whoever_deletes_the_schedule_keeps_its_nights():
    """KubeRay makes a RayCronJob the owner of its RayJobs, which are deleted with their owner."""
    files = [*(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.*")]
    texts = [file.read_text() for file in files if file.suffix in {".md", ".py", ".yaml"}]
    told = [line for text in texts for line in re.findall(r"delete raycronjob [^`\n]*", text)]
    assert len(told) >= 3
    assert {line.strip() for line in told} == {
        "delete raycronjob nightloupe-night --cascade=orphan"
    }


def test_files_with_keys_are_neither_committed_nor_submitted():
    """`ray job submit --working-dir .` leaves behind what git ignores."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    keys = re.findall(r"--from-env-file=(\S+)", GUIDE)
    keys += re.findall(r"install -D --mode=600 (\S+)", GUIDE)
    assert len(keys) == 3
    for name in keys:
        assert any(fnmatch.fnmatch(name, pattern.lstrip("/")) for pattern in ignored), name


def test_places_that_the_text_links_to_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", GUIDE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_readme_leads_here():
    assert "(docs/guide.md)" in (ROOT / "README.md").read_text()
