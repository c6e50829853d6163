import math

import numpy as np
import pytest
from scipy import stats

from ops.results import drift
from ops.results.drift import (
    Agreement,
    Drift,
    adjusted_p_values,
    agreement,
    drift_between,
    population_stability_index,
)


def samples(seed: int, shift: float = 0.0, count: int = 800):
    rng = np.random.default_rng(seed)
    return rng.normal(size=count), rng.normal(size=count + 50) + shift


@pytest.mark.parametrize("seed", range(5))
def test_equal_distributions_do_not_drift_and_shifted_ones_do(seed):
    still, moved = drift_between(*samples(seed)), drift_between(*samples(seed, 0.5))
    assert still.ks_p > 0.01
    assert still.psi < 0.1
    assert moved.ks_p < 1e-9
    assert moved.psi > 0.15
    assert moved.wasserstein == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("count", [20, 1500])
def test_measures_follow_their_definitions(count):
    before, after = samples(3, 0.2, count)
    measured = drift_between(before, after)
    points = np.concatenate([before, after])
    gaps = [abs((before <= x).mean() - (after <= x).mean()) for x in points]
    assert measured.ks == pytest.approx(max(gaps), abs=1e-12)
    steps = np.sort(points)
    cdf = [np.searchsorted(np.sort(v), steps[:-1], "right") / len(v) for v in (before, after)]
    area = (np.abs(cdf[0] - cdf[1]) * np.diff(steps)).sum()
    assert measured.wasserstein == pytest.approx(area, rel=1e-9)


def test_the_test_is_exact_for_few_scores():
    assert drift_between(np.arange(3.0), np.arange(10.0, 13)).ks_p == pytest.approx(2 / 20)
    before, after = samples(0, 0.1, 1500)
    assert drift_between(before, after).ks_p == stats.ks_2samp(before, after, method="asymp").pvalue


def test_the_stability_index_sums_over_deciles_of_the_first_sample():
    before, after = np.arange(100.0), np.concatenate([np.arange(50.0), np.arange(50.0)])
    p = [10.5 / 105] * 10
    counts = [20, 20, 20, 20, 20, 0, 0, 0, 0, 0]
    edges = np.quantile(before, np.arange(1, 10) / 10)
    assert [
        ((after > a) & (after <= b)).sum() for a, b in zip([-1, *edges], [*edges, 99], strict=True)
    ] == counts
    q = [(count + 0.5) / 105 for count in counts]
    expected = sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert population_stability_index(before, after) == pytest.approx(expected, rel=1e-12)
    assert population_stability_index(before, before) == 0
    assert population_stability_index(np.ones(30), np.ones(7)) == pytest.approx(
        (7.5 / 8 - 30.5 / 31) * math.log(7.5 / 8 / (30.5 / 31))
        + (0.5 / 8 - 0.5 / 31) * math.log(31 / 8)
    )


def test_without_scores_all_measures_are_none():
    none, some = np.zeros(0), np.arange(5.0)
    assert drift_between(none, some) == drift_between(some, none) == Drift()
    assert agreement(none, none) == agreement(some[:1], some[:1]) == Agreement()
    assert agreement(some, np.ones(5)) == Agreement()


def test_agreement_is_one_for_any_rising_score_and_minus_one_for_a_falling_one():
    scores = np.random.default_rng(0).normal(size=60)
    assert agreement(scores, np.exp(scores)) == pytest.approx((1, 1))
    assert agreement(scores, -scores) == pytest.approx((-1, -1))


def test_agreement_with_ties_is_that_of_average_ranks_and_of_counted_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 9, 50).astype(float), rng.integers(0, 9, 50).astype(float)
    measured = agreement(a, b)
    ranks = [[(v < x).sum() + ((v == x).sum() + 1) / 2 for x in v] for v in (a, b)]
    assert measured.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-12)
    signs = [np.sign(v[:, None] - v)[np.triu_indices(50, 1)] for v in (a, b)]
    tau = (signs[0] * signs[1]).sum() / math.sqrt(abs(signs[0]).sum() * abs(signs[1]).sum())
    assert measured.kendall == pytest.approx(tau, rel=1e-12)


def test_p_values_of_many_tests_are_adjusted_and_none_does_not_count_as_a_test():
    assert adjusted_p_values([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.04, 0.04])
    assert adjusted_p_values([None]) == [None]
    assert adjusted_p_values([]) == []


def test_among_many_products_that_do_not_drift_hardly_any_is_significant():
    p = [drift_between(*samples(seed, count=100)).ks_p for seed in range(200)]
    assert sum(value < 0.05 for value in p) > 2
    assert sum(value < 0.05 for value in drift.adjusted_p_values(p)) <= 1
