from __future__ import annotations

import pytest

from ops.errors import UserError
from ops.storage import files
from ops.storage.paths import Out
from pipelines.tables import model_names

IDS = ("a" * 32, "ab" + "c" * 30, "d" * 32)


@pytest.fixture
def out(tmp_path):
    out = Out(str(tmp_path))
    runs = [
        (IDS[0], "tiles v1, champion"),
        (IDS[1], "tiles v2, challenger, next"),
        (IDS[0], ""),  # scored from its folder
        (IDS[1], "tiles v2, champion"),
        (IDS[2], ""),
    ]
    for number, (model_id, name) in enumerate(runs, start=1):
        record = {"run_id": f"r{number}", "number": number, "started": "2026-11-20T00"}
        record |= {"model_id": model_id, "method": "padim", "model_name": name}
        files.write_json(out.run(f"r{number}"), record)
    return out


def test_models_have_the_last_name_that_a_run_recorded(out):
    models = model_names.models_of(out)
    assert [(model.model_id, model.short) for model in models] == [
        (IDS[0], "tiles v1, champion"),
        (IDS[1], "tiles v2, champion"),
        (IDS[2], "padim dddddddd"),
    ]
    assert [str(model) for model in models[1:]] == [
        f"tiles v2, champion ({IDS[1]})",
        f"padim ({IDS[2]})",
    ]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (IDS[0], 0),
        ("aaaa", 0),
        ("tiles v1", 0),
        ("tiles v2, champion", 1),
        ("champion", 1),
        ("abcc", 1),
        ("d" * 31, 2),
    ],
)
def test_a_model_is_found_by_id_start_of_an_id_version_or_alias(out, asked, found):
    assert model_names.find(out, asked).model_id == IDS[found]


@pytest.mark.parametrize("asked", ["a", "challenger", "tiles", "eeee", "v1"])
def test_what_is_no_name_is_refused_with_the_models(out, asked):
    with pytest.raises(UserError, match=rf"used a model '{asked}'; models: tiles v1, champion \("):
        model_names.find(out, asked)


def test_a_whole_id_needs_no_record(out):
    assert model_names.find(out, "e" * 32) == ("e" * 32, "", "")
