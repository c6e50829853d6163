import os

import pytest

from ops.detectors.model_folder import write_model
from ops.storage.paths import Out
from pipelines.tables import current_scores, lock
from tests.conftest import tiny_model
from tests.pipelines.tables.test_current_scores import MODELS, publish, row


def test_it_says_what_would_go_and_removes_only_when_told(leave, tmp_path):
    out = Out("out")
    publish(out, 0, [row("u/1")])
    publish(out, 20, [row("u/1", score=2.0), row("u/2")])
    code, said, _ = leave("expire", "--keep-nights", "1")
    assert code == 0
    assert "run=2026-11-20-0000/part-00000.parquet: 1 of 1 rows\n" in said
    assert said.splitlines()[-1] == (
        "1 rows of 1 tables and 0 maps can be removed; --remove true removes them"
    )
    assert len(current_scores.published(out)) == 2
    code, said, _ = leave("expire", "--keep-nights", "1", "--remove", "true")
    assert said.endswith("1 rows of 1 tables and 0 maps removed\n")
    assert len(current_scores.current(out, MODELS[0])) == 2
    assert len(current_scores.published(out)) == 1


@pytest.mark.parametrize("words", [[], ["--keep-nights", "0"]])
def test_how_many_nights_stay_must_be_said(leave, words):
    code, _, err = leave("expire", *words)
    assert code == 2
    assert err.startswith("error: ")


def test_scoring_does_not_work_beside_it(leave):
    write_model("model", tiny_model("bolt"))
    with lock.locked(Out("out")):
        code, said, _ = leave("score", "--archive", "parts", "--model", "model")
    assert code == 75
    assert said.endswith("nothing to do here\n")
    assert os.listdir("out") == ["_lock"]


def test_it_does_not_work_beside_a_night(leave):
    with lock.locked(Out("out")):
        code, said, _ = leave("expire", "--keep-nights", "1")
    assert code == 75
    assert "nothing to do here" in said
