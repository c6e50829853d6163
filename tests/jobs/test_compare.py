"""The job on two drawn nights, with MLflow on SQLite."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jobs.compare import print_summary
from jobs.tracking.tracker import EXPERIMENT, Tracker
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.reports import image_pairs
from pipelines.reports.compare import PRODUCTS, Compared
from pipelines.reports.labels import Joined
from pipelines.scoring.run import ScoreSettings
from tests.runs import Part, finish, model_of

HOSTILE = "../<b>\x1b[2J$x"
NONE = ScoreSettings("none")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two nights; every score of the second is higher."""
    root, model = str(tmp_path_factory.mktemp("out")), model_of(["bolt", HOSTILE])
    rng = np.random.default_rng(0)
    parts = [
        Part(f"{product}{i}.png", product, float(rng.normal(1.6, 0.4)))
        for product in ("bolt", HOSTILE)
        for i in range(30)
    ]
    finish(root, parts, model, "2026-11-20", NONE)
    higher = [replace(part, score=part.score + 1) for part in parts]
    finish(root, higher, model, "2026-11-21", NONE)
    return root


@pytest.mark.slow
def test_the_last_two_runs_are_compared_told_and_tracked(out, leave):
    code, told, err = leave("compare", "--out", out, "--movers", "2")
    assert code == 0, err
    assert "\x1b" not in told
    assert "share no image" not in told
    lines = told.splitlines()
    assert max(map(len, lines[2:-1])) <= 100
    row = next(line.split() for line in lines if line.startswith("bolt"))
    products = parquet.read(f"{folder_of(told)}/products.parquet").to_pylist()
    bolt = next(row for row in products if row["product"] == "bolt")
    assert row[6:8] == [f"+{bolt['became_anomalous']}", "-0"]
    assert bolt["ks_q"] < 0.01

    from mlflow import MlflowClient

    client = MlflowClient(Tracker(out).uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["became_anomalous"] == sum(p["became_anomalous"] for p in products)
    assert run.data.metrics["both"] == 60
    assert run.data.metrics["max_ks"] == max(p["ks"] for p in products)
    assert run.data.tags["run_a"] < run.data.tags["run_b"]
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id, "comparison")}
    assert artifacts == {
        f"comparison/{name}"
        for name in ("products.parquet", "movers.parquet", "picture_0.png", "picture_1.png")
    }


def folder_of(told: str) -> str:
    return told.splitlines()[-1].removeprefix("tables and plots: ")


@pytest.mark.slow
def test_nights_that_share_no_image_are_said_to(leave, tmp_path):
    model = model_of(["bolt"])
    for night, name in (("2026-11-20", "a"), ("2026-11-21", "b")):
        parts = [Part(f"{name}{i}.png", "bolt", float(i)) for i in range(9)]
        finish(str(tmp_path / "o"), parts, model, night, NONE)
    code, told, err = leave("compare", "--out", "o", "--pictures", "0")
    assert code == 0, err
    assert "A and B share no image, as two nights that each score only new images" in told
    assert max(map(len, told.splitlines()[2:-1])) <= 100


def test_other_versions_and_labels_that_did_not_join_are_counted(capsys):
    movers = image_pairs.MOVERS.empty_table()
    joined = Joined(by_address=3, ambiguous=0, unmatched=2, unlisted=0)
    print_summary(Compared(PRODUCTS.empty_table(), movers, {}, joined, other_versions=7))
    told = capsys.readouterr().out
    assert "7 images are in A and B as different versions, which are not paired;" in told
    assert "labels: 3 images have another version than the one that was labelled;" in told
    assert "labels: 2 labelled images have no row of scores\n" in told


@pytest.mark.parametrize(
    ("words", "sentence", "exit_code"),
    [
        (["2026-11-20-00"], "name two runs, or none to compare the last two", 2),
        (["2026-11-20-00", "2026-11-21-00"], "o holds no run 2026-11-20-00", 1),
        ([], "o holds no finished run", 1),
        (["--sample", "0"], "sample 0 must be at least 2", 2),
        (["--models", "champion"], "models 'champion' must name two models, such as", 2),
        (["--models", "a,b,c"], "models 'a,b,c' must name two models, such as", 2),
        (["x", "y", "--models", "a,b"], "compare two runs or two --models, not both", 2),
        (["--models", "champion,b"], "no run in o/runs used a model 'champion'; models: none", 1),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_sentence(leave, words, sentence, exit_code):
    code, _, err = leave("compare", *words, "--out", "o")
    assert code == exit_code
    assert sentence in err
    assert err.count("\n") == 1


def test_one_run_is_not_enough(leave, tmp_path):
    finish(str(tmp_path / "o"), [Part("a.png", "bolt", 1.0)], model_of(["bolt"]))
    code, _, err = leave("compare", "--out", "o")
    assert code == 1
    assert "o holds 1 finished run, but 2 are needed" in err
    assert not (tmp_path / "o" / "comparisons").exists()


def test_a_model_is_not_compared_with_itself(leave, tmp_path):
    run = finish(str(tmp_path / "o"), [Part("a.png", "bolt", 1.0)], model_of(["bolt"]))
    name = run.model.card.model_id
    code, _, err = leave("compare", "--models", f"{name[:8]}, {name}", "--out", "o")
    assert code == 1
    assert f"{name[:8]} and {name} are one model, patchcore ({name}); name another one" in err


@pytest.mark.slow
def test_two_models_are_compared_over_all_their_nights(leave, tmp_path):
    parts = [Part(f"{i}.png", "bolt", i / 10) for i in range(30)]
    root, models = str(tmp_path / "o"), [model_of(["bolt"], seed) for seed in (0, 1)]
    finish(root, parts[:20], models[0], "2026-11-20", NONE)
    finish(root, parts[20:], models[0], "2026-11-21", NONE)
    finish(root, [replace(part, score=3.0) for part in parts[1:]], models[1], "2026-11-22", NONE)
    first, second = (model.card.model_id for model in models)
    code, told, err = leave("compare", "--models", f"{first},{second}", "--out", "o")
    assert code == 0, err
    lines = told.splitlines()
    assert lines[:2] == [f"A: model patchcore ({first})", f"B: model patchcore ({second})"]
    assert "The models differ, and so does the unit of their scores" in told
    assert folder_of(told) == f"o/comparisons/model-{first}--model-{second}"
    (bolt,) = parquet.read(f"{folder_of(told)}/products.parquet").to_pylist()
    assert (bolt["both"], bolt["only_in_a"], bolt["only_in_b"]) == (29, 1, 0)
    # Scores above 2.0 are anomalous: those of the last nine in A, all in B.
    assert (bolt["became_anomalous"], bolt["became_normal"]) == (20, 0)

    from mlflow import MlflowClient

    client = MlflowClient(Tracker("o").uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    names = [f"patchcore {model[:8]}" for model in (first, second)]
    assert run.info.run_name == f"compare {names[0]} with {names[1]}"
    assert run.data.tags.items() >= {("model_a", first), ("model_name_b", names[1])}
    assert run.data.metrics["became_anomalous"] == 20


def test_runs_may_be_named_without_their_settings_names(leave, out):
    names = (item.name for item in files.listing(Out(out).runs()))
    first, second = sorted(name.removesuffix(".json") for name in names)
    code, _, err = leave("compare", first, "--out", "elsewhere")
    assert "name two runs" in err
    code, _, err = leave("compare", first, second, "third", "--out", out)
    assert code == 2
    assert "third" in err.split("known settings:")[0]
