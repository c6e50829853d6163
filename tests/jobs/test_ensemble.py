"""The job that makes one model of several, without a cluster: what it refuses and writes."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from jobs import ensemble as job
from jobs.cli import sources
from jobs.tracking import pyfunc
from jobs.tracking.tracker import Tracker
from ops.detectors.model_folder import Model, read_model, write_model
from tests.conftest import tiny_model

MODEL = tiny_model("bolt")
FIT = {"holdout": 0.1, "images": 9, "held_out": 1, "failures": []}
MEMBERS = [replace(MODEL, card=replace(MODEL.card, fit=FIT | {"images": n})) for n in (9, 8)]
CARD = replace(
    MODEL.card, method="ensemble", settings={"sigma": 4.0, "combine": "mean"}, fit=FIT,
    members=tuple(member.card for member in MEMBERS),
)  # fmt: skip
ENSEMBLE = Model(CARD, {}, {}, members=tuple(MEMBERS))
TOGETHER = ["--models", '["a", "b"]', "--archive", "parts", "--name", ""]


@pytest.fixture
def made(leave, monkeypatch):
    """What the pipeline was asked for; it answers with an ensemble. Members lie in a and b."""
    asked = []

    def ensemble(*arguments):
        asked.append(arguments)
        return ENSEMBLE

    monkeypatch.setattr(job, "ensemble", ensemble)
    monkeypatch.setattr(job, "connected", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(sources, "inventory_of", lambda *_: None)
    monkeypatch.setattr(Tracker, "deliver", lambda *_: None)
    for place, member in zip("ab", MEMBERS, strict=True):
        write_model(place, member)
    return asked


def test_it_reads_the_members_and_writes_one_folder(leave, made):
    words = ["--combine", "smallest_p", "--sigma", "2", "--false-alarm-rate", "0.05"]
    code, said, _ = leave("ensemble", *TOGETHER, *words, "--model-folder", "both")
    assert code == 0
    ((members, _, request, *_),) = made
    assert [member.card.model_id for member in members] == [m.card.model_id for m in MEMBERS]
    assert (request.settings.combine, request.settings.sigma) == ("smallest_p", 2.0)
    assert request.false_alarm_rate == 0.05
    assert read_model("both").card.model_id == CARD.model_id
    assert said.endswith("model: both\n")


def test_it_is_registered_as_one_model(leave, made, monkeypatch):
    given = []
    monkeypatch.setattr(Tracker, "register", lambda _, *what: given.append(what) or "models:/b@c")
    words = [*TOGETHER[:-2], "--model-folder", "both", "--name", "b", "--alias", "c"]
    code, said, _ = leave("ensemble", *words)
    assert code == 0
    assert said.endswith("registered: models:/b@c\n")
    assert [what[:3] for what in given] == [(ENSEMBLE, "b", "c")]


def test_it_refuses_what_cannot_be_one_model(leave, made):
    code, _, err = leave("ensemble", "--models", '["a"]', "--archive", "parts")
    assert (code, "at least 2 members, not 1" in err) == (1, True)
    assert leave("ensemble", *TOGETHER, "--combine", "max")[0] == 2
    assert leave("ensemble", *TOGETHER, "--false-alarm-rate", "1")[0] == 2
    code, _, err = leave("ensemble", "--models", '["gs://b/m", "b"]', "--archive", "parts")
    assert (code, "--models 'gs://b/m' is neither a path nor" in err) == (2, True)
    write_model("both", ENSEMBLE)
    code, _, err = leave("ensemble", "--models", '["a", "both"]', "--archive", "parts")
    assert (code, "member 2 is itself an ensemble" in err) == (1, True)
    assert made == []


@pytest.mark.parametrize("job_name", ["fit", "plan"])
def test_an_ensemble_does_not_grow(leave, made, job_name):
    write_model("both", ENSEMBLE)
    code, _, err = leave(job_name, "--archive", "parts", "--grow", "both")
    assert code == 1
    assert "both is an ensemble" in err
    assert "grow each member" in err


def test_a_fit_replaces_no_ensemble(leave, made):
    write_model("both", ENSEMBLE)
    code, _, err = leave("fit", "--archive", "parts", "--model-folder", "both", "--name", "")
    assert code == 1
    assert f"model {CARD.model_id} lies at both" in err


def test_its_page_tells_its_members():
    lines = pyfunc.page(ENSEMBLE).splitlines()
    assert lines[0] == f"Ensemble, combined by `mean`; model `{CARD.model_id}`."
    assert [line for line in lines if line.startswith("* Detector `patchcore` on")] == [
        f"* {pyfunc._described(member)}" for member in CARD.members
    ]
