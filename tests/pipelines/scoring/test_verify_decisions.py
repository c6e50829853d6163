"""Decisions of people beside a run: what cannot be read is found, what is of nothing is counted."""

from __future__ import annotations

import pytest

from jobs import check as job
from ops.storage import files
from pipelines.scoring import verify
from pipelines.scoring.run import ScoreSettings
from pipelines.scoring.violations import RunUnderCheck
from pipelines.tables import current_scores, decisions
from tests.runs import Part, finish, model_of

PARTS = [Part("a.png", "bolt", 2.5), Part("b.png", "bolt", 1.0)]
RULE = "tables of decisions can be read and keep the rules of their schema"


@pytest.fixture
def run(tmp_path):
    return finish(str(tmp_path), PARTS, model_of(["bolt"]), settings=ScoreSettings("none"))


def check(run):
    record = files.read_json(run.out.run(run.run_id))
    checked = RunUnderCheck(run.out, run.run_id, record, record["inventory"], run.model.card)
    return verify.check(checked, 1.0, lambda *_: None)


def decide(run, **more):
    """Publish a decision of the first image; `more` are values of its row of a score."""
    score = current_scores.current(run.out, run.model.card.model_id).to_pylist()[0] | more
    return decisions.append(run.out, [decisions.decided(score, "defect", who="ann", source="page")])


def test_without_decisions_nothing_is_said(run):
    findings = check(run)
    assert (findings.violations, findings.decisions) == ({}, 0)


def test_decisions_of_unknown_images_and_runs_are_counted_and_break_no_rule(run, capsys):
    decide(run)
    decide(run, image_id="f" * 32)
    decide(run, run_id="2026-11-19-0000")
    findings = check(run)
    assert (findings.violations, findings.decisions, findings.decisions_unknown) == ({}, 3, 2)
    assert job.main(["--out", run.out.root]) == 0
    sentence = "decisions of people: 3; 2 of them are of runs or images that are not known\n"
    assert sentence in capsys.readouterr().out


def test_tables_that_cannot_be_read_or_break_rules_are_named(run, capsys):
    kept = decide(run)
    torn = run.out.label_table("torn")
    files.write_bytes(torn, files.read_bytes(kept)[:-20])
    findings = check(run)
    assert list(findings.violations) == [RULE]
    assert findings.violations[RULE].examples[0].startswith(f"{torn} is no valid table")
    assert findings.decisions == 1
    assert job.main(["--out", run.out.root]) == 1
    said = capsys.readouterr().out
    assert ("decisions of people: 1\n" in said, "breaks 1 rule" in said) == (True, True)


def test_a_run_whose_table_is_lost_still_has_its_decisions_checked(run):
    decide(run)
    files.remove_file(run.out.table(run.night, run.run_id))
    files.write_bytes(run.out.label_table("text"), b"x")
    findings = check(run)
    assert RULE in findings.violations
    assert (findings.decisions, findings.decisions_unknown) == (1, 0)
