"""A root filesystem with what deploy/Dockerfile copies and installs, made without containers.

Needs root and debootstrap. Python packages come from the environment that runs this, which has the
versions of constraints.txt, too: what `.[server]` asks for, what these ask for, and no other.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.deploy import image

#: Debian's release with CPython 3.11, that of the image's base.
RELEASE = "bookworm"
NAMES = {"HOME": "/home/nightloupe", "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


def wanted(leaf: str = "") -> dict[str, importlib.metadata.Distribution]:
    """The distributions that `pip install ".[server]"` installs, by canonical name.

    What `leaf` asks for is left out, unless another one asks for it.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    todo = [(Requirement(one), "") for one in asked]
    found: dict[str, importlib.metadata.Distribution] = {}
    seen = set()
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for one in {"", *requirement.extras}:
            if (name, one) in seen:
                continue
            seen.add((name, one))
            found[name] = importlib.metadata.distribution(name)
            if name != leaf:
                todo += [(Requirement(line), one) for line in found[name].requires or []]
    return found


def link(distribution: importlib.metadata.Distribution, site: Path, programs: Path) -> None:
    """Install a distribution without copying its bytes."""
    for file in distribution.files or []:
        source, target = Path(distribution.locate_file(file)), site / file
        if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():  # mlflow and mlflow-skinny share some
            os.link(source, target)
    for script in distribution.entry_points.select(group="console_scripts"):
        module, _, function = script.value.partition(":")
        program = programs / script.name
        program.write_text(
            f"#!/usr/bin/python3\nimport sys\nfrom {module} import {function}\n"
            f"sys.exit({function}())\n"
        )
        program.chmod(0o755)


def run(*words: str, **options: object) -> None:
    subprocess.run(words, check=True, **options)


def build(root: Path) -> None:
    """Make the filesystem at `root`, on the disk of this environment.

    Raises CalledProcessError if Debian's packages cannot be had.
    """
    target = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"],
        capture_output=True,
        text=True,
        check=True,
    )
    mirrors = [line for line in target.stdout.split() if "security" not in line]
    if not root.exists():
        packages = "python3,ca-certificates,netbase,tzdata"
        options = ["--variant=minbase", f"--include={packages}"]
        run("debootstrap", *options, RELEASE, str(root), mirrors[0])
    run("chroot", str(root), "apt-get", "update", "-qq")
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends"]
    run("chroot", str(root), *install, *sorted(image.installed()), stdout=subprocess.DEVNULL)
    (root / "usr/bin/python").unlink(missing_ok=True)
    (root / "usr/bin/python").symlink_to("python3")
    for words in image.instructions():
        if words[:2] == ["RUN", "useradd"]:
            run("chroot", str(root), "sh", "-ec", " ".join(words[1:]))
    (project := root / "opt" / "nightloupe").mkdir(parents=True)
    image.copy_project(project)
    site = root / "usr/local/lib/python3.11/dist-packages"
    for distribution in wanted().values():
        link(distribution, site, root / "usr/local/bin")


def inside(root: Path, script: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as the image's user; its processes and its network are its own."""
    setting = [f"{name}={value}" for name, value in (NAMES | image.environment()).items()]
    words = ["chroot", "--userspec=1000:1000", str(root), "env", "-i", *setting, "bash", "-s"]
    prepare = (
        'ip link set lo up; mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; '
        'mount -t tmpfs -o size=2g tmpfs "$0/dev/shm"; mount -t sysfs sysfs "$0/sys"; exec "$@"'
    )
    apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    with script.open() as text:
        return subprocess.run(
            [*apart, "bash", "-ec", prepare, str(root), *words],
            stdin=text,
            capture_output=True,
            text=True,
            check=False,
        )


def size(root: Path) -> int:
    """Bytes of all files."""
    said = subprocess.run(["du", "-sb", str(root)], capture_output=True, text=True, check=True)
    return int(re.match(r"\d+", said.stdout)[0])
