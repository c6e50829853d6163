"""The image: what the Dockerfile copies and installs is all that the jobs need."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib

from tests.conftest import ROOT
from tests.deploy import image, root_filesystem

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
SECRETS = {"RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_the_image_installs_what_the_constraints_say_and_nothing_else():
    runs = " ".join(" ".join(words) for words in image.instructions() if words[0] == "RUN")
    installs = re.findall(r"pip install ([^;&]*)", runs)
    assert len(installs) == 2
    named = set()
    for words in map(shlex.split, installs):
        assert words[words.index("-c") + 1] == "constraints.txt"
        values = {words.index(flag) + 1 for flag in ("-c", "--index-url") if flag in words}
        named |= {w for n, w in enumerate(words) if not w.startswith("-") and n not in values}
    assert named == {"torch", "torchvision", ".[server]"}
    assert set(PROJECT["optional-dependencies"]) >= {"server"}


def test_every_requirement_has_an_exact_version():
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(one for extra in extras.values() for one in extra)]
    wanted = {re.split(r"[\[><=]", one)[0].lower() for one in asked} - {PROJECT["name"]}
    pinned = {line.split("==")[0].lower() for line in CONSTRAINTS}
    assert wanted <= pinned
    assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", line) for line in CONSTRAINTS)


def test_the_image_holds_the_project_and_no_secret():
    copied = image.copied()
    assert {"ops", "pipelines", "jobs", "constraints.txt"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().split()
    assert "*" in ignored
    assert {name.removeprefix("!") for name in ignored if name.startswith("!")} == set(copied)
    named = {
        word.split("=")[0]
        for words in image.instructions()
        if words[0] in {"ARG", "ENV"}
        for word in words
    }
    assert not named & SECRETS
    users = [words[1] for words in image.instructions() if words[0] == "USER"]
    assert users == ["1000"]


def test_every_file_that_the_code_opens_beside_itself_is_in_the_image(tmp_path):
    """All of them: the places that are written as paths from the root of the repository."""
    pattern = re.compile(r'Path\(__file__\)\.parents\[\d\]((?: / "[\w.-]+")+)')
    files = [f for folder in ("ops", "pipelines", "jobs") for f in (ROOT / folder).rglob("*.py")]
    opened = {
        "/".join(re.findall(r'"([\w.-]+)"', place))
        for file in files
        for place in pattern.findall(file.read_text())
    }
    opened = {name for name in opened if not name.startswith("docs/")}  # written, by a developer
    assert opened >= {"deploy/sql/duckdb.sql", "deploy/published.toml"}
    image.copy_project(tmp_path)
    assert [name for name in sorted(opened) if not (tmp_path / name).exists()] == []


def test_with_what_the_image_copies_a_night_finds_its_macros(tmp_path):
    image.copy_project(tmp_path)
    program = (
        "from pipelines.tables import current_scores, database\n"
        "print(current_scores.__file__, len(current_scores.MACROS.read_text()) > 500)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [f"{tmp_path}/pipelines/tables/current_scores.py", "True"]


def test_the_image_runs_the_python_that_the_project_is_made_for_fixed_by_its_digest():
    (base,) = [
        words[1] for words in image.instructions() if words[:1] == ["ARG"] and "@" in words[1]
    ]
    version = re.fullmatch(r"BASE=python:(3\.\d+)-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert version
    assert PROJECT["requires-python"] == f">={version[1]}"
    assert ["FROM", "$BASE"] in image.instructions()


def test_the_layer_of_gigabytes_depends_on_no_file_that_is_often_edited():
    names = [words[0] for words in image.instructions()]
    big = next(
        n
        for n, words in enumerate(image.instructions())
        if "constraints.txt" in words and words[0] == "RUN"
    )
    before = [w for words in image.instructions()[:big] if words[0] == "COPY" for w in words[1:-1]]
    assert set(before) == {"pyproject.toml", "constraints.txt", "LICENSE"}
    assert "COPY" in names[big + 1 :]


def test_rays_launcher_finds_its_programs_and_its_home_in_the_image():
    """What ray.autoscaler._private.command_runner runs inside the container."""
    assert image.installed() == {"openssh-client", "rsync", "sudo", "wget"}
    assert image.environment()["HOME"] == "/home/nightloupe"
    rules = re.findall(r"NOPASSWD: ([^\"]*)\"", image.DOCKERFILE.read_text())
    assert rules == [r"/usr/bin/chown 1000\:1000 /home/nightloupe/$file"]
    assert "*" not in rules[0]  # sudo would let it stand for other files, too


def test_without_the_wheel_of_torch_for_cuda_nothing_asks_for_cuda():
    """So an index of its CPU wheels saves all of it; their own requirements name none."""
    cuda = re.compile(r"nvidia-|cuda-|triton")
    with_cuda, without = root_filesystem.wanted(), root_filesystem.wanted(leaf="torch")
    assert len([name for name in with_cuda if cuda.match(name)]) > 10
    assert [name for name in without if cuda.match(name)] == []
