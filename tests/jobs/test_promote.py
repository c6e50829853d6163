"""Moving an alias in a registry on SQLite, and back."""

from __future__ import annotations

import pytest

from jobs.tracking.record import Record
from jobs.tracking.tracker import Tracker
from ops.storage import files
from ops.storage.paths import Out
from tests.conftest import tiny_model


@pytest.mark.parametrize(
    ("words", "sentence", "exit_code"),
    [
        ([], "name the model: models:/name@alias or models:/name/version", 2),
        (["models:/a/1", "--alias", ""], "alias must not be empty", 2),
        (["washer"], "'washer' is neither models:/name@alias nor models:/name/version", 1),
    ],
)
def test_errors_are_one_sentence(leave, words, sentence, exit_code):
    code, _, err = leave("promote", *words)
    assert (code, err.count("\n")) == (exit_code, 1)
    assert sentence in err


@pytest.mark.slow
def test_a_challenger_becomes_champion_and_goes_back_with_records(leave):
    tracker, models = Tracker("out"), [tiny_model("bolt", seed) for seed in (0, 1)]
    registered = [tracker.register(each, "bolts", "", Record("fit")) for each in models]
    assert registered == ["models:/bolts@champion", "models:/bolts@challenger"]
    # The same model again takes it from nobody.
    again = tracker.register(models[0], "bolts", "", Record("fit"))
    assert again == "models:/bolts@champion"
    ids = [model.card.model_id for model in models]
    code, said, _ = leave("promote", registered[1], "--reason", "fewer false alarms")
    assert (code, said) == (0, f"champion is now bolts v2, model {ids[1]}; it was v3\n")
    code, said, _ = leave("promote", "models:/bolts@champion", "--back", "true")
    assert (code, said) == (0, f"champion is now bolts v3, model {ids[0]}; it was v2\n")
    assert tracker.name_of("models:/bolts@champion") == "bolts v3, champion"
    out = Out("out")
    first, second = (files.join(out.promotions(), name) for name in files.names(out.promotions()))
    kept = files.read_json(first)
    assert (kept["name"], kept["alias"], kept["version"], kept["model_id"]) == (
        *("bolts", "champion", "2"),
        ids[1],
    )
    assert kept["before"] == {"version": "3", "model_id": ids[0]}
    assert (kept["reason"], kept["back"]) == ("fewer false alarms", False)
    assert files.read_json(second)["back"]
    code, _, err = leave("promote", "models:/bolts@champion", "--back", "true", "--alias", "next")
    assert code == 1
    assert "records no version that next of bolts had before" in err
