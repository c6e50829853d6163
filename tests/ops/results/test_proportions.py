"""Intervals of shares."""

from __future__ import annotations

import numpy as np
import pytest

from ops.results.proportions import wilson_interval


@pytest.mark.parametrize(
    ("hits", "trials"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 12), (331, 715)]
)
def test_the_interval_holds_the_shares_of_which_the_seen_one_is_within_its_deviations(hits, trials):
    """Its ends solve (hits - n p)^2 = z^2 n p (1 - p), the equation of Wilson 1927."""
    z = 1.959963984540054
    ends = np.roots([trials**2 + z**2 * trials, -(2 * hits + z**2) * trials, hits**2])
    assert wilson_interval(hits, trials) == pytest.approx(tuple(sorted(ends)), abs=1e-9)


def test_it_reaches_the_ends_exactly():
    assert wilson_interval(0, 4)[0] == 0.0
    assert wilson_interval(4, 4)[1] == 1.0


@pytest.mark.parametrize(("hits", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_what_is_no_share_is_refused(hits, trials):
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(hits, trials)
