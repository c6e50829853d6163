"""Scores of members in common units, and p-values of their combination that hold."""

import numpy as np
import pytest

from ops.errors import UserError
from ops.results.calibration import Calibration
from ops.results.combination import Position, calibrated, combined, left_out

KNOWN = np.array([1.0, 2.0, 4.0, 6.0, 7.0])


def test_a_position_is_the_median_and_half_the_distance_between_quartiles():
    assert Position.of(KNOWN) == Position(4.0, 2.0)
    assert Position.of(np.array([1.0, 2.0])) == Position(1.5, 0.25)
    assert Position(4.0, 2.0).standardised(np.array([4.0, 7.0])).tolist() == [0.0, 1.5]


@pytest.mark.parametrize("known", [[3.0], [3.0, 3.0], [1.0, 3.0, 3.0, 3.0, 3.0, 9.0]])
def test_held_out_scores_that_do_not_spread_are_refused(known):
    with pytest.raises(UserError, match=r"do not spread.* around 3; .*larger --holdout"):
        Position.of(np.array(known))


def test_the_smallest_p_value_decides_and_does_not_saturate():
    scores = np.array([0.0, 1.0, 3.0, 7.0, 9.0, 13.0])
    found = calibrated(scores, KNOWN, "smallest_p")
    held_out_as_high = np.log([6, 6, (5 * 4) ** 0.5, 2, 2, 2])
    beyond = np.array([-0.5, 0, 0, 0, 1, 3])  # in spreads of 2
    assert found == pytest.approx(beyond - held_out_as_high, abs=1e-12)
    one, other = np.array([9.0, 4.0, np.nan]), np.array([4.0, 13.0, 4.0])
    both = combined([one, other], [KNOWN, KNOWN], "smallest_p")
    assert both[:2] == pytest.approx([1 - np.log(2), 3 - np.log(2)])
    assert np.isnan(both[2])


def test_equal_held_out_scores_count_together():
    known = np.array([1.0, 2.0, 2.0, 2.5, 3.0])
    assert calibrated(np.array([2.0]), known, "smallest_p") == pytest.approx(-np.log(5))


def test_the_mean_is_that_of_standardised_scores_in_any_batch():
    random = np.random.default_rng(0)
    scores = list(random.normal(size=(9, 50)))
    known = [np.sort(member) for member in random.normal(size=(9, 20))]
    found = combined(scores, known, "mean")
    expected = [
        (s - np.median(k)) / (np.subtract(*np.percentile(k, [75, 25])) / 2)
        for s, k in zip(scores, known, strict=True)
    ]
    assert found == pytest.approx(np.mean(expected, axis=0), abs=1e-12)
    for n in (0, 17, 49):
        assert combined([s[n : n + 1] for s in scores], known, "mean")[0] == found[n]


@pytest.mark.parametrize("combine", ["mean", "smallest_p"])
def test_each_held_out_image_is_calibrated_on_those_of_other_parts(combine):
    scores = list(np.random.default_rng(1).normal(size=(2, 7)))
    units = np.array(["a", "b", "a", "c", "b", "e", "f"])
    found = left_out(scores, units.tolist(), combine)
    for unit in units:
        mine, others = units == unit, units != unit
        known = [known_of(member[others], units[others].tolist()) for member in scores]
        assert all(len(each) == 4 for each in known)  # of five parts
        expected = combined([member[mine] for member in scores], known, combine)
        assert found[mine].tolist() == expected.tolist()


def known_of(scores, units):
    return np.array(Calibration.of(scores, units).scores)


@pytest.mark.parametrize("combine", ["mean", "smallest_p"])
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_good_images_of_parts_are_flagged_as_often_as_was_promised(combine, rate):
    # Images of a part are nearly equal: the promise is used up, and none is lost to rounding.
    random, held_out, new, views, repeats = np.random.default_rng(2), 19, 100, 6, 60
    units, alarms = np.repeat(np.arange(held_out), views).tolist(), 0.0
    for _ in range(repeats):
        shared = random.normal(size=(held_out + new, 1))
        members = [
            shared
            + random.standard_t(3, size=shared.shape)
            + 0.01 * random.normal(size=(held_out + new, views))
            for _ in range(4)
        ]
        good = [member[:held_out].ravel() for member in members]
        known = [known_of(member, units) for member in good]
        found = combined([member[held_out:, 0] for member in members], known, combine)
        calibration = Calibration.of(left_out(good, units, combine).tolist(), units)
        alarms += (calibration.p_values(found) <= rate + 1e-12).mean() / repeats
    assert 0.6 * rate < alarms < 1.15 * rate


def test_held_out_images_of_one_part_alone_are_refused():
    with pytest.raises(UserError, match="all held-out images are of one part; hold out more"):
        left_out([KNOWN, KNOWN], ["a"] * 5, "mean")


def flagged(combine: str, held_out: int, members: int) -> tuple[float, float]:
    """Shares of new good images that score above all held-out ones: left out, and not."""
    random, new, repeats = np.random.default_rng(2), 100, 50
    alarms = np.zeros(2)
    for _ in range(repeats):
        shared = random.normal(size=held_out + new)
        scores = [shared + random.standard_t(3, size=shared.shape) for _ in range(members)]
        known = [np.sort(member[:held_out]) for member in scores]
        good = [member[:held_out] for member in scores]
        found = combined([member[held_out:] for member in scores], known, combine)
        ways = left_out(good, range(held_out), combine), combined(good, known, combine)
        for way, values in enumerate(ways):
            p_values = Calibration.of(values.tolist()).p_values(found)
            alarms[way] += (p_values <= 1 / (held_out + 1)).mean() / repeats
    return alarms[0], alarms[1]


@pytest.mark.parametrize("combine", ["mean", "smallest_p"])
def test_good_images_are_flagged_as_often_as_was_promised(combine):
    left, within = flagged(combine, held_out=19, members=4)
    promised = 1 / 20
    assert 0.6 * promised < left < 1.15 * promised
    if combine == "smallest_p":
        assert within > 2.5 * promised
