"""What deploy/Dockerfile says, read from its text."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from tests.conftest import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def instructions() -> list[list[str]]:
    """The instructions, each as its words."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [line.split() for line in lines if line.strip()]


def copied() -> list[str]:
    """The paths of the repository that the image holds."""
    return [word for words in instructions() if words[0] == "COPY" for word in words[1:-1]]


def environment() -> dict[str, str]:
    """What ENV sets."""
    pairs = (word for words in instructions() if words[0] == "ENV" for word in words[1:])
    return dict(pair.split("=", 1) for pair in pairs)


def installed() -> set[str]:
    """Debian's packages."""
    runs = " ".join(" ".join(words) for words in instructions() if words[0] == "RUN")
    (line,) = re.findall(r"apt-get install ([^;&]*)", runs)
    return {word for word in shlex.split(line) if not word.startswith("-")}


def copy_project(folder: Path) -> None:
    """Copy what the image holds, and nothing else."""
    for name in copied():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
