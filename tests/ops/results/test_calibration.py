from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from ops.errors import UserError
from ops.results.calibration import Calibration, promised_rate

SCORES = np.random.default_rng(0).normal(size=99)


def test_p_values_are_those_of_a_loop():
    calibration = Calibration.of([3, 1, 2, 2])
    scores = np.array([0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    expected = [(1 + sum(held >= s for held in (3, 1, 2, 2))) / 5 for s in scores]
    assert calibration.p_values(scores).tolist() == expected


def test_p_values_are_never_zero_and_fall_with_the_score():
    scores = np.linspace(-5, 5, 101)
    p = Calibration.of(SCORES).p_values(scores)
    assert p.min() == 1 / 100
    assert p.max() == 1
    assert (np.diff(p) <= 0).all()


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("count", [10, 99, 200])
def test_good_images_exceed_the_threshold_as_often_as_promised(rate, count):
    rng = np.random.default_rng(count)
    alarms = []
    for _ in range(500):
        *held, new = rng.exponential(size=count + 1)
        calibration = Calibration.of(held)
        alarms.append(new > calibration.threshold(rate))
    promised = Calibration.of(range(count)).promised_rate(rate)
    error = 4 * (promised * (1 - promised) / len(alarms)) ** 0.5
    assert np.mean(alarms) == pytest.approx(promised, abs=error)
    assert promised <= max(rate, 1 / (count + 1)) + 1e-12


@pytest.mark.parametrize("rate", [0.01, 0.02, 0.05, 0.1, 0.2, 0.33, 0.5])
def test_scores_above_the_threshold_have_p_values_of_at_most_the_rate(rate):
    calibration = Calibration.of(SCORES)
    scores = np.concatenate([SCORES, np.linspace(-4, 4, 301)])
    called = scores > calibration.threshold(rate)
    assert np.array_equal(called, calibration.p_values(scores) <= rate + 1e-12)


def test_a_rate_that_divides_evenly_is_not_rounded_away():
    calibration = Calibration.of(range(1, 100))  # 99 held out: ranks of hundredths
    for percent in range(1, 100):
        assert calibration.promised_rate(percent / 100) == percent / 100
        assert calibration.threshold(percent / 100) == 100 - percent


def test_too_few_held_out_images_promise_a_higher_rate():
    calibration = Calibration.of([5, 1, 3])
    assert calibration.threshold(0.01) == 5
    assert calibration.promised_rate(0.01) == promised_rate(0.01, 3) == 0.25


def test_without_held_out_images_there_is_no_threshold():
    calibration = Calibration.of([])
    assert calibration.threshold(0.01) is None
    assert calibration.promised_rate(0.01) is None
    assert promised_rate(0.01, 0) == 1
    assert np.isnan(calibration.p_values(np.array([1.0, 2.0]))).all()


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_a_rate_outside_of_0_to_1_is_refused(rate):
    with pytest.raises(UserError, match="between 0 and 1"):
        Calibration.of([1, 2]).threshold(rate)


def test_scores_are_kept_in_order():
    assert Calibration.of(np.float32([2, 1, 3])).scores == (1.0, 2.0, 3.0)


def grown(rng, share, nights=2):
    """False alarms and misses, at 5 %, of a bank that grew by those false alarms over nights.

    The given share of them calibrates. Parts are points; a score is the distance to the bank.
    """

    def scores(points, bank):
        return np.sqrt(((points[:, None] - bank) ** 2).sum(axis=2).min(axis=1))

    bank, held_out = rng.standard_normal((60, 3)), rng.standard_normal((99, 3))
    for _ in range(nights):
        threshold = Calibration.of(scores(held_out, bank)).threshold(0.05)
        night = rng.standard_normal((300, 3))
        alarms = night[scores(night, bank) > threshold]
        calibrates = rng.random(len(alarms)) < share
        bank = np.vstack([bank, alarms[~calibrates]])
        held_out = np.vstack([held_out, alarms[calibrates]])
    threshold = Calibration.of(scores(held_out, bank)).threshold(0.05)
    good, defective = rng.standard_normal((2, 300, 3))
    defective[:, 0] += 3
    return (scores(good, bank) > threshold).mean(), (scores(defective, bank) <= threshold).mean()


def test_a_bank_that_grows_by_false_alarms_keeps_its_promise_and_calibrating_on_them_wastes_it():
    rng = np.random.default_rng(0)
    rate, missed = np.mean([grown(rng, 0.0) for _ in range(80)], axis=0)
    lower_rate, more_missed = np.mean([grown(rng, 0.1) for _ in range(80)], axis=0)
    assert 0.04 < rate < 0.056  # one standard error is 0.003
    assert lower_rate < 0.75 * rate
    assert more_missed > missed + 0.03


def test_images_of_one_part_are_one_observation():
    scores, parts = [9, 8, 7, 5, 4, 3, 1], ["a", "a", "a", "b", "b", "c", "c"]
    calibration = Calibration.of(scores, parts)
    # Shares above: 9: 1/3, 8: 2/3, 7: 1, 5: 3/2, 4: 2, 3: 5/2, 1: 3. Above k - 1 first at 9, 5, 3.
    assert calibration.scores == (3, 5, 9)
    asked = np.array([10, 9, 8, 7, 6, 5, 4, 3, 2, 1])
    shares = [sum(scores[i] >= s and 1 / parts.count(parts[i]) for i in range(7)) for s in asked]
    expected = [(1 + np.ceil(share - 1e-9)) / 4 for share in shares]
    assert calibration.p_values(asked).tolist() == expected
    shuffled = np.random.default_rng(0).permutation(7)
    again = Calibration.of([scores[i] for i in shuffled], [parts[i] for i in shuffled])
    assert again == calibration
    assert Calibration.of(scores, range(7)) == Calibration.of(scores)
    assert Calibration.of([], []).scores == ()


def fractions(scores, parts):
    """Scores of a calibration by exact shares, one after the other."""
    images, above, kept = Counter(parts), Fraction(0), []
    for score, part in sorted(zip(scores, parts, strict=True), reverse=True):
        above += Fraction(1, images[part])
        if above > len(kept):
            kept.append(score)
    return tuple(reversed(kept))


# Whole shares of parts of 1 to 60 images exceed 64 bits; 1/2999 and 1/3000 differ by 1e-7.
@pytest.mark.parametrize("sizes", [[1, 2, 3, 7, 7], range(1, 61), [2999, 3000], [1000, 1001, 9]])
@pytest.mark.parametrize("levels", [5, 10**6])
def test_shares_of_parts_are_exact_whatever_their_sizes(sizes, levels):
    rng = np.random.default_rng(0)
    parts = [f"p{number}" for number, size in enumerate(sizes) for _ in range(size)]
    scores = rng.integers(0, levels, len(parts)).astype(float).tolist()
    assert Calibration.of(scores, parts).scores == fractions(scores, parts)


def test_thirds_of_many_parts_add_up():
    count = 200_000
    parts = np.repeat(np.arange(count), 3)
    calibration = Calibration.of(range(3 * count), parts.tolist())
    # Of each three scores from the top, the highest.
    assert calibration.scores == tuple(range(2, 3 * count, 3))


def coverage(rng, by_part, rate, views=3, parts=19, trials=3000):
    """How often an image of a new good part has a p-value of at most the rate."""
    alarms = 0
    for _ in range(trials):
        own = rng.normal(size=(parts + 1, 1)) + 0.3 * rng.normal(size=(parts + 1, views))
        held, new = own[1:].ravel(), own[0, :1]
        units = np.repeat(np.arange(parts), views).tolist() if by_part else None
        alarms += Calibration.of(held, units).p_values(new)[0] <= rate + 1e-12
    return alarms / trials


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_calibrating_by_part_keeps_the_promise(rate):
    # 19 parts; four standard errors above the rate.
    rng = np.random.default_rng(0)
    assert coverage(rng, True, rate) <= rate + 4 * (rate * (1 - rate) / 3000) ** 0.5


def test_calibrating_by_image_promises_rates_that_parts_do_not_keep():
    rng = np.random.default_rng(0)
    # 57 images of 19 parts seem to promise 1 / 58.
    assert coverage(rng, False, 1 / 58) > 1.5 / 58
    assert coverage(rng, True, 1 / 58) == 0
