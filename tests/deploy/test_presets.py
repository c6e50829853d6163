"""Settings that we ship are settings that exist."""

from __future__ import annotations

import re

import pytest

from jobs import fit
from jobs.cli import published_results
from jobs.cli.parser import Parser
from ops.detectors.registry import DETECTORS
from tests.conftest import ROOT

PRESETS = sorted((ROOT / "deploy" / "methods").glob("*.toml"))


@pytest.fixture(scope="module")
def parser() -> Parser:
    """The parser of jobs.fit; to build it takes longer than to read a preset."""
    fit_parser = Parser(prog="fit")
    fit_parser.add_class_arguments(fit.Settings, None)
    for name, kind in DETECTORS.items():
        fit_parser.add_class_arguments(kind.Settings, name)
    return fit_parser


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_a_preset_holds_only_settings_of_the_fit_and_says_how_to_run_it(parser, file):
    settings = parser.instantiate(parser.parse_args(["--config", str(file)]))
    assert settings.method in DETECTORS
    jobs = re.findall(r"python -m jobs\.(\w+)", file.read_text())
    assert jobs
    assert all((ROOT / "jobs" / f"{job}.py").exists() for job in jobs)


_FIGURES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pro": "PRO",
    "oracle_errors": "errors at oracle thresholds",
}


@pytest.mark.parametrize("name", sorted(published_results.read()))
def test_what_was_published_has_a_preset_whose_head_says_so(name):
    data_set, preset = name.split("/")
    head = (ROOT / "deploy" / "methods" / f"{preset}.toml").read_text()
    if data_set != "mvtec":
        return  # the preset is for the data set that most figures are of
    row = published_results.published(name)
    told = [f"{word} {getattr(row, key)}" for key, word in _FIGURES.items() if getattr(row, key)]
    assert f"# Published means over its {row.products} products: {', '.join(told)}." in head
    assert f"--published {name}" in head


def test_there_are_presets():
    assert PRESETS
