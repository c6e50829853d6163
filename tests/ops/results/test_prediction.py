"""Predictions of a night's figures: against closed forms, and their rate of false alarms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ops.results import prediction
from ops.results.prediction import median_variance, prediction_p_value, share_as_angle


def test_equal_variances_below_those_between_nights_give_the_prediction_of_the_t_distribution():
    """Then sampling and nights together vary as the figures do, which is the textbook interval."""
    rng = np.random.default_rng(0)
    earlier = rng.normal(3, 1, 20)
    found = prediction_p_value(earlier, np.full(20, 0.01), 6.0, 0.01)
    deviation = (6.0 - earlier.mean()) / (earlier.std(ddof=1) * np.sqrt(1 + 1 / 20))
    assert found == pytest.approx(2 * stats.t.sf(deviation, 19))


def test_without_variation_between_nights_only_sampling_counts():
    earlier, variances = np.zeros(9), np.array([1.0, 4.0, 4.0] * 3)
    found = prediction_p_value(earlier, variances, 3.0, 2.0)
    of_mean = 1 / (1 / variances).sum()
    assert found == pytest.approx(2 * stats.t.sf(3 / np.sqrt(2 + of_mean), 8))


def test_the_variance_between_nights_solves_its_equation():
    rng = np.random.default_rng(1)
    variances = rng.uniform(0.1, 3, 30)
    values = rng.normal(0, np.sqrt(variances + 2))
    between = prediction._variance_between(values, variances)
    weights = 1 / (variances + between)
    mean = np.average(values, weights=weights)
    assert (weights * (values - mean) ** 2).sum() == pytest.approx(29)
    assert 0.5 < between < 5


def test_a_night_of_few_images_is_less_surprising():
    earlier, variances = np.linspace(0, 1, 12), np.full(12, 0.001)
    few, many = (prediction_p_value(earlier, variances, 2.0, spread) for spread in (1.0, 0.001))
    assert many < 0.01 < few


def test_what_never_varied_predicts_nothing():
    assert prediction_p_value(np.ones(9), np.zeros(9), 2.0, 0.0) is None
    some = np.array([0.0, 0.1, *[0.0] * 7])
    assert 0 < prediction_p_value(np.ones(9), some, 2.0, 0.0) < 1e-6


def test_the_transformed_share_has_a_variance_that_does_not_depend_on_it():
    rng = np.random.default_rng(0)
    for share in (0.05, 0.2, 0.5):
        counts = rng.binomial(200, share, 20_000)
        angles = [share_as_angle(int(part), 200)[0] for part in counts]
        assert np.var(angles) == pytest.approx(share_as_angle(10, 200)[1], rel=0.05)


def test_the_variance_of_a_median_follows_from_its_quartiles():
    samples = np.random.default_rng(0).normal(5, 2, (4000, 101))
    q25, medians, q75 = np.quantile(samples, [0.25, 0.5, 0.75], axis=1)
    estimates = [median_variance(low, high, 101) for low, high in zip(q25, q75, strict=True)]
    assert np.mean(estimates) == pytest.approx(medians.var(), rel=0.1)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_chance_alone_gives_small_p_values_at_most_as_often_as_they_say(spread):
    """Medians of nights of 20 to 400 images, with and without variation between nights."""
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(800):
        variances = 0.4 / rng.integers(20, 400, 13)
        values = rng.normal(0, np.sqrt(variances + spread**2))
        p_values.append(prediction_p_value(values[:-1], variances[:-1], values[-1], variances[-1]))
    for level in (0.01, 0.05):
        # Three standard deviations of the simulation.
        assert np.mean(np.array(p_values) <= level) <= level + 3 * np.sqrt(level / 800)
