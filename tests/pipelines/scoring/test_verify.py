"""Each kind of damage to a run is found and named. Runs are drawn, without Ray."""

from __future__ import annotations

import pytest

from pipelines.scoring import verify
from pipelines.scoring.violations import RunUnderCheck
from pipelines.tables import run_records
from tests.checked_runs import finished, to_damage
from tests.run_damages import DAMAGES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("out"), "flagged")


@pytest.fixture
def damage(run, tmp_path):
    with to_damage(run, tmp_path / "kept") as damage:
        yield damage


@pytest.mark.parametrize("do", DAMAGES, ids=lambda do: do.__name__)
def test_damage_is_found_with_rule_value_and_remedy(damage, do):
    do(damage)
    run, record = damage.run, run_records.recorded(damage.out, damage.run.run_id)
    place = str(record.get("inventory"))
    under_check = RunUnderCheck(damage.out, run.run_id, record, place, damage.card)
    findings = verify.check(under_check, 1.0, lambda *_: None)
    rule, value = DAMAGES[do]
    (violation,) = [v for v in findings.violations.values() if v.rule == rule]
    assert value in violation.examples[0]
    assert violation.remedy
