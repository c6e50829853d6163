"""Intervals of shares, against scipy's."""

from __future__ import annotations

import pytest
from scipy import stats

from ops.results.proportions import wilson_interval


@pytest.mark.parametrize(
    ("hits", "trials"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 12), (331, 715)]
)
def test_the_interval_is_that_of_scipy(hits, trials):
    expected = stats.binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_it_reaches_the_ends_exactly():
    assert wilson_interval(0, 4)[0] == 0.0
    assert wilson_interval(4, 4)[1] == 1.0


@pytest.mark.parametrize(("hits", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_what_is_no_share_is_refused(hits, trials):
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(hits, trials)
