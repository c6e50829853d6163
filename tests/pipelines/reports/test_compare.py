"""Two generated runs with known differences, without Ray."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ops.errors import UserError
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.reports import compare
from pipelines.reports.compare import CompareSettings
from pipelines.reports.labels import Joined
from pipelines.reports.sides import Runs
from pipelines.scoring.run import ScoreSettings
from pipelines.tables import run_records
from tests.runs import Part, finish, list_parts, model_of

PRODUCTS = ("bolt", "../x", "<b>größe", "部品")
THRESHOLD = 2.0  # of the generated model
NONE = ScoreSettings("none", False, 100)


def last_two(out):
    return Runs(out, *run_records.latest(out, 2))


def no_progress(*_):
    """Reports no progress."""


def first_night():
    rng = np.random.default_rng(0)
    return [
        Part(f"{number}/{i}.png", product, float(rng.normal(1.6, 0.4)), int(i % 5 == 0))
        for number, product in enumerate(PRODUCTS)
        for i in range(60)
    ]


def second_night(parts):
    """Noise; bolts drift; one image is gone, one new, one fails, one moves to another product."""
    rng = np.random.default_rng(1)
    moved = [
        replace(
            part,
            version="v2",
            score=part.score + float(rng.normal(0, 0.1)) + (part.product == "bolt"),
        )
        for part in parts
    ]
    moved[70] = replace(moved[70], score=None)
    moved[130] = replace(moved[130], product="bolt")
    return [*moved[:200], *moved[201:], Part("new.png", "bolt", 1.0, version="v2")]


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """The output folder, both nights' parts, and the comparison by address."""
    root = str(tmp_path_factory.mktemp("out"))
    model, before = model_of(PRODUCTS), first_night()
    after = second_night(before)
    runs = [
        finish(root, parts, model, night, NONE)
        for night, parts in (("2026-11-20", before), ("2026-11-21", after))
    ]
    out = Out(root)
    labels = list_parts(f"{root}/labels.parquet", [*before, *after]).location
    settings = CompareSettings(join="uri", movers=3)
    comparison = compare.compare(last_two(out), labels, settings, no_progress)
    return out, runs, before, after, comparison


def pairs(nights, product):
    """The scores of images that both nights scored as this product."""
    _, _, before, after, _ = nights
    later = {part.name: part for part in after}
    both = [(part, later[part.name]) for part in before if part.name in later]
    return [
        (a, b)
        for a, b in both
        if a.product == b.product == product and None not in (a.score, b.score)
    ]


def row_of(nights, product):
    return next(row for row in nights[-1].products.to_pylist() if row["product"] == product)


def changes(nights):
    out, runs, *_ = nights
    return parquet.read(out.comparison(runs[0].run_id, runs[1].run_id, "changes")).to_pylist()


@pytest.mark.parametrize("product", PRODUCTS)
def test_changed_verdicts_are_counted_and_listed(nights, product):
    crossed = {
        (b.uri, "became_anomalous" if b.score > THRESHOLD else "became_normal")
        for a, b in pairs(nights, product)
        if (a.score > THRESHOLD) != (b.score > THRESHOLD)
    }
    named = {
        (row["uri"], row["change"])
        for row in changes(nights)
        if row["product"] == product and row["change"].startswith("became")
    }
    assert named == crossed
    row = row_of(nights, product)
    for change in ("became_anomalous", "became_normal"):
        assert row[change] == sum(kind == change for _, kind in crossed)


def test_the_generated_runs_have_verdicts_changed_in_both_directions(nights):
    rows = nights[-1].products.to_pylist()
    assert sum(row["became_anomalous"] for row in rows) > 10
    assert sum(row["became_normal"] for row in rows) > 0


def test_all_other_changes_are_listed_once(nights):
    _, _, before, _, _ = nights
    other = [row for row in changes(nights) if not row["change"].startswith("became")]
    assert {row["change"]: row["uri"] for row in other} == {
        "only_in_a": before[200].uri,
        "only_in_b": "file:///parts/new.png",
        "status": before[70].uri,
        "moved": before[130].uri,
    }
    assert len(other) == 4
    rows = nights[-1].products.to_pylist()
    for name in ("only_in_a", "only_in_b", "status", "moved"):
        assert sum(row[name] for row in rows) == 1
    assert sum(row["both"] for row in rows) == 239
    assert sum(row["failed_b"] for row in rows) == 1


@pytest.mark.parametrize("product", PRODUCTS)
def test_rank_correlations_are_scipys_of_the_joined_pairs(nights, product):
    scores = np.array([(a.score, b.score) for a, b in pairs(nights, product)])
    row = row_of(nights, product)
    assert row["ranked"] == len(scores)
    assert row["spearman"] == pytest.approx(stats.spearmanr(*scores.T).statistic, rel=1e-12)
    assert row["kendall"] == pytest.approx(stats.kendalltau(*scores.T).statistic, rel=1e-12)


def test_the_images_whose_rank_changed_most_are_listed(nights):
    for product in PRODUCTS:
        both = pairs(nights, product)
        ranks = [stats.rankdata([pair[side].score for pair in both]) - 1 for side in (0, 1)]
        moves = np.abs(ranks[1] - ranks[0]) / (len(both) - 1)
        rows = [row for row in nights[-1].movers.to_pylist() if row["product"] == product]
        distances = [abs(row["rank_b"] - row["rank_a"]) for row in rows]
        assert distances == pytest.approx(sorted(moves, reverse=True)[:3])
        move_of = {pair[1].uri: move for pair, move in zip(both, moves, strict=True)}
        assert [move_of[row["uri"]] for row in rows] == pytest.approx(distances)


def test_only_the_product_that_drifted_drifts(nights):
    rows = {row["product"]: row for row in nights[-1].products.to_pylist()}
    assert rows["bolt"]["ks_q"] < 1e-6
    assert rows["bolt"]["psi"] > 0.25
    assert all(rows[product]["ks_q"] > 0.05 for product in PRODUCTS[1:])
    before = [part.score for part in nights[2] if part.product == "bolt"]
    after = [part.score for part in nights[3] if part.product == "bolt"]
    test = stats.ks_2samp(before, after)
    assert (rows["bolt"]["ks"], rows["bolt"]["ks_p"]) == pytest.approx(
        (test.statistic, test.pvalue)
    )
    adjusted = stats.false_discovery_control([row["ks_p"] for row in rows.values()])
    assert [row["ks_q"] for row in rows.values()] == pytest.approx(list(adjusted))
    assert rows["bolt"]["median_a"] == pytest.approx(np.median(before))


def test_labels_say_which_run_was_wrong_more_often(nights):
    row = row_of(nights, "../x")
    both = pairs(nights, "../x")
    for side, name in ((0, "errors_a"), (1, "errors_b")):
        wrong = [pair[side].score > THRESHOLD for pair in both] != np.array(
            [pair[0].label == 1 for pair in both]
        )
        assert row[name] == wrong.sum()
    assert row["labelled"] == len(both)


def test_labels_of_older_versions_are_joined_by_address_and_counted(nights, tmp_path):
    out, _, before, *_, by_uri = nights
    old = [replace(part, version="v0") for part in before[1:]]
    labels = list_parts(f"{tmp_path}/labels.parquet", [*old, Part("x", "bolt", 1.0, 0)]).location
    settings = CompareSettings(join="uri", pictures=0)
    comparison = compare.compare(last_two(out), labels, settings, no_progress)
    # The first image is labelled no more, nor was the one that only the second night has.
    good = sum(part.label == 0 for part in before[1:])
    assert comparison.joined == Joined(239, 0, 1, 2, unsplit=good)
    wrong = [sum(row["errors_b"] for row in c.products.to_pylist()) for c in (comparison, by_uri)]
    assert wrong[1] - 1 <= wrong[0] <= wrong[1]
    labelled = [sum(r["labelled"] for r in c.products.to_pylist()) for c in (comparison, by_uri)]
    assert labelled[0] == labelled[1] - 1


def test_pictures_are_in_the_folder_of_the_comparison_for_any_product_name(nights):
    out, runs, *_, comparison = nights
    folder = out.comparisons(runs[0].run_id, runs[1].run_id)
    assert set(comparison.pictures) == set(PRODUCTS)
    assert {os.path.dirname(place) for place in comparison.pictures.values()} == {
        f"{folder}/pictures"
    }
    names = {item.name for item in files.listing(folder)}
    assert names == {
        *("products.parquet", "changes.parquet", "movers.parquet"),
        *(os.path.relpath(place, folder) for place in comparison.pictures.values()),
    }
    assert all(files.read_bytes(place)[:4] == b"\x89PNG" for place in comparison.pictures.values())


def test_by_image_id_other_versions_are_other_images(nights):
    out = nights[0]
    comparison = compare.compare(last_two(out), "", CompareSettings(pictures=0), no_progress)
    rows = comparison.products.to_pylist()
    assert sum(row["both"] for row in rows) == 0
    assert sum(row["only_in_a"] for row in rows) == sum(row["only_in_b"] for row in rows) == 240
    assert {row["spearman"] for row in rows} == {None}
    assert len(comparison.movers) == 0
    assert comparison.pictures == {}
    assert (comparison.other_versions, comparison.joined) == (239, None)
    assert nights[-1].other_versions == 0
    # Distributions need no pairs.
    assert [row["ks"] for row in rows] == [row["ks"] for row in nights[-1].products.to_pylist()]


def test_of_different_models_p_values_and_ranks_are_compared_not_scores(tmp_path):
    parts = [part for part in first_night() if part.product == "bolt"]
    finish(str(tmp_path), parts, model_of(["bolt"]), "2026-11-20", NONE)
    # Another unit of scores, as if another detector had seen the same.
    scaled = [replace(part, score=part.score * 1000) for part in parts]
    finish(str(tmp_path), scaled, model_of(["bolt"], seed=1), "2026-11-21", NONE)
    out = Out(str(tmp_path))
    comparison = compare.compare(last_two(out), "", CompareSettings(), no_progress)
    (row,) = comparison.products.to_pylist()
    assert row["measure"] == "p_value"
    assert row["spearman"] == pytest.approx(1)
    assert row["median_a"] <= 1
    assert row["median_b"] == pytest.approx(1 / 3)
    assert len(comparison.movers) == 0


@pytest.mark.parametrize("setting", [{"movers": -1}, {"sample": 1}, {"pictures": -1}])
def test_settings_that_leave_nothing_to_compare_are_refused(setting):
    with pytest.raises(UserError, match="must be at least"):
        CompareSettings(**setting)
