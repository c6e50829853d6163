from jobs.cli import reference
from jobs.fit import Settings
from ops.detectors.registry import DETECTORS
from tests.conftest import ROOT


def test_the_reference_is_up_to_date():
    assert reference.FILE.read_text(encoding="utf-8") == reference.text(), (
        "write it again with: python -m jobs.cli.reference"
    )


def test_the_reference_has_every_job():
    files = {file.stem for file in (ROOT / "jobs").glob("*.py")} - {"__init__"}
    assert set(reference.JOBS) == files


def test_every_setting_has_a_type_and_a_meaning():
    kinds = [Settings, *(detector.Settings for detector in DETECTORS.values())]
    settings = [setting for kind in kinds for setting in reference._settings(kind)]
    assert [s.name for s in settings if not s.meaning or "class" in s.kind] == []
    named = next(s.meaning for s in settings if s.name == "method")
    assert all(name in named for name in DETECTORS)
