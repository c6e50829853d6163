"""Settings that we ship are settings that exist."""

from __future__ import annotations

import re

import pytest

from jobs import entry, fit
from ops.methods import METHODS
from tests.conftest import ROOT

PRESETS = sorted((ROOT / "deploy" / "methods").glob("*.toml"))


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_a_preset_holds_only_settings_of_the_fit_and_says_how_to_run_it(file):
    groups = {name: kind.Settings for name, kind in METHODS.items()}
    settings, methods = entry.parse(fit.Settings, fit.__doc__, ["--config", str(file)], groups)
    assert settings.method in methods
    jobs = re.findall(r"python -m jobs\.(\w+)", file.read_text())
    assert jobs
    assert all((ROOT / "jobs" / f"{job}.py").exists() for job in jobs)


def test_there_are_presets():
    assert PRESETS
