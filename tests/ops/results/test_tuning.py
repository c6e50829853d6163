"""Proposals of a false-alarm rate, against sums by hand and over drawn decisions."""

from __future__ import annotations

import numpy as np
import pytest

from ops.errors import SettingError
from ops.results.tuning import Costs, Levels, propose


def levels(images, defects=(), false_alarms=()):
    def counts(values):
        return np.array([*values, *[0] * (len(images) - len(values))], np.int64)

    return Levels(counts(images), counts(defects), counts(false_alarms))


def test_fewer_looks_where_enough_false_alarms_were_decided():
    # 9 held-out images: rates are tenths. Now 0.3; all 40 between 0.1 and 0.3 are false alarms.
    found = propose(levels([5, 20, 20, 50, *[50] * 6], [5], [0, 20, 20]), 3, Costs(20, 1))
    assert (found.present, found.proposed) == (0.3, 0.1)
    assert (found.flagged_before, found.flagged_after) == (45, 5)
    assert (found.saved, found.missed, found.caught) == (40, 0, 0)
    assert (found.decided, found.decided_below) == (45, 0)
    assert found.cost == pytest.approx(-40 + 20 * 40 / 42)


def test_decided_defects_between_the_rates_are_not_given_up_for_looks():
    # Of 40 parts between 0.2 and 0.3 none is a defect; of those between 0.1 and 0.2, three are.
    decided = levels([5, 40, 40, *[50] * 7], [5, 3], [0, 37, 40])
    found = propose(decided, 3, Costs(25, 1))
    assert (found.proposed, found.missed, found.saved) == (0.2, 0, 40)
    assert found.cost == pytest.approx(-40 + 25 * 40 / 42)
    # Where a miss costs less it pays to give them up, and the proposal says so.
    found = propose(decided, 3, Costs(10, 1))
    assert (found.proposed, found.missed, found.saved) == (0.1, 3, 77)
    assert found.cost == pytest.approx(-80 + 10 * 80 * 4 / 82)


def test_too_few_decisions_speak_for_no_other_rate():
    costs = Costs(20, 1)
    assert costs.decisions_needed == 19
    for decided, proposed in ((18, 0.2), (19, 0.1)):
        found = propose(levels([5, 300, *[50] * 8], [], [0, decided]), 2, costs)
        assert (found.proposed, found.decided) == (proposed, decided)
    for cheap in (costs, Costs(1, 1)):
        assert propose(levels([5, 300, *[50] * 8]), 2, cheap).proposed == 0.2


@pytest.mark.parametrize(("miss", "needed"), [(1, 1), (2, 1), (20.5, 19), (100, 99)])
def test_the_number_of_decisions_that_is_needed_is_the_smallest_that_changes_something(
    miss, needed
):
    costs = Costs(miss, 1)
    assert costs.decisions_needed == needed
    assert miss / (needed + 2) < 1 or needed == 1
    assert needed == 1 or miss / (needed + 1) >= 1


def test_more_looks_only_for_defects_that_were_decided():
    # 25 more looks would catch two of the three defects that people found among parts called good.
    images, defects = [5, 10, 15, *[100] * 7], [5, 1, 1, 0, 1]
    found = propose(levels(images, defects), 1, Costs(20, 1))
    assert (found.proposed, found.caught, found.flagged_after) == (0.3, 2, 30)
    assert found.cost == pytest.approx(25 - 2 * 20)
    assert found.decided_below == 3
    # False alarms among parts called good are no reason, and neither are parts nobody looked at.
    assert propose(levels(images, [5], [0, 9]), 1, Costs(20, 1)).proposed == 0.1


def test_the_lowest_rate_is_that_of_the_held_out_images():
    found = propose(levels([100, *[0] * 9], [], [100]), 1, Costs(2, 1))
    assert (found.proposed, found.flagged_after) == (0.1, 100)


@pytest.mark.parametrize(
    "costs", [(0, 1), (1, -1), (float("nan"), 1), (1, float("inf")), (50, 1e-308), (1e308, 1)]
)
def test_costs_lie_within_bounds(costs):
    with pytest.raises(SettingError, match=r"must lie between 1e-09 and 1e\+12, such as 50"):
        Costs(*costs)


def test_the_most_unequal_costs_need_a_decision_for_each_look_that_a_miss_costs():
    assert Costs(1e12, 1e-9).decisions_needed == 10**21 - 1
    assert Costs(1e-9, 1e12).decisions_needed == 1


def test_proposals_cost_less_over_new_nights_than_the_present_rate():
    """Drawn products: half of them have defects only at the smallest p-values."""
    rng, change = np.random.default_rng(0), []
    costs = Costs(10, 1)
    for product in range(200):
        share = np.where(np.arange(20) < 2, 0.5, 0.0 if product % 2 else 0.15)
        night = rng.poisson(10, 20)
        looked = rng.binomial(night, np.where(np.arange(20) < 8, 0.7, 0.0))
        defects = rng.binomial(looked, share)
        found = propose(Levels(night, defects, looked - defects), 8, costs)
        kept = round(found.proposed * 20)
        # A new night like it: looks that are saved, and defects among them.
        new = rng.poisson(10, 20)
        missed = rng.binomial(new, share)
        change.append(10 * missed[kept:8].sum() - new[kept:8].sum())
    assert np.mean(change[1::2]) < -50  # of 60 looks
    # Of the others, three looks of twenty find a defect: they are worth half more than they cost.
    assert 0 <= np.mean(change[::2]) < 10
