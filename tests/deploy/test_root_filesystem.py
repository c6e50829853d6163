"""A night in a root filesystem with what the image holds: head, fit, night, query, tracker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.deploy import root_filesystem

pytestmark = [pytest.mark.campaign, pytest.mark.slow, pytest.mark.alone, pytest.mark.ray]


def _chown(root: Path, file: str) -> str:
    """What sudo says when the image's user asks it for a file, as Ray's launcher does."""
    words = ["chroot", "--userspec=1000:1000", root, "sudo", "-n", "chown", "1000:1000", file]
    return subprocess.run(words, capture_output=True, text=True, check=False).stderr


def test_a_night_runs_in_what_the_image_holds():
    if os.geteuid() or not shutil.which("debootstrap"):
        pytest.skip("needs root and debootstrap: apt-get install debootstrap")
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the image has CPython 3.11")
    # Beside the environment, whose files it links.
    root = ROOT / "build" / "root_filesystem"
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(exist_ok=True)
    try:
        root_filesystem.build(root)
        owned = [
            _chown(root, f"/home/nightloupe/{name}") for name in ("ray_bootstrap_key.pem", "x")
        ]
        assert ["No such file" in owned[0], "password is required" in owned[1]] == [True, True]
        done = root_filesystem.inside(root, ROOT / "deploy" / "try-image")
        size = root_filesystem.size(root) / 1e9
        print(f"{size:.2f} GB", done.stdout)  # noqa: T201 - `pytest -rP` shows it
        assert done.returncode == 0, done.stdout + done.stderr
        steps = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("== ")]
        assert steps == ["head", "fit", "night", "query", "tracker", "all"]
        assert "FileNotFoundError" not in done.stdout + done.stderr
    finally:
        shutil.rmtree(root, ignore_errors=True)
