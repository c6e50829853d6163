"""One score from those of an ensemble's members, which are calibrated on the same held-out images.

Members' scores have units of their own. What is comparable is where a score lies among the scores
of held-out good images: so many spreads above their median, or above so many of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ops.errors import UserError
from ops.results.calibration import one_of_each, unit_numbers

Floats = npt.NDArray[np.float64]
#: How the scores of members become one.
Combine = Literal["mean", "smallest_p"]


class Position(NamedTuple):
    """Where values of good images lie."""

    centre: float
    """Their median."""
    spread: float
    """Half the distance between their quartiles."""

    @classmethod
    def of(cls, known: Floats) -> Position:
        """The position of at least one value, ascending. Raises UserError if they do not spread."""
        low, centre, high = (_quantile(known, share) for share in (0.25, 0.5, 0.75))
        if not high > low:
            raise UserError(
                f"{len(known)} held-out images do not spread: their values lie around {centre:g}; "
                "fit the members with a larger --holdout"
            )
        return cls(centre, (high - low) / 2)

    def standardised(self, values: Floats) -> Floats:
        """Values in spreads above the centre."""
        return (values - self.centre) / self.spread


def _quantile(known: Floats, share: float) -> float:
    at = share * (len(known) - 1)
    below = int(at)
    above = min(below + 1, len(known) - 1)
    return float(known[below] + (at - below) * (known[above] - known[below]))


def calibrated(scores: Floats, known: Floats, combine: Combine) -> Floats:
    """A member's scores (N,) in a unit that all members share; higher is more anomalous.

    `known` are its scores of held-out good images, ascending, one for each part. `mean`: spreads
    above their median. `smallest_p`: -log(1 + held-out scores that are as high), interpolated
    between held-out scores, and further by a spread per unit beyond them, so that it does not
    saturate as p-values do.
    Raises UserError if held-out scores do not spread.
    """
    position = Position.of(known)
    if combine == "mean":
        return position.standardised(scores)
    knots = np.unique(known)
    as_high = len(known) - np.searchsorted(known, knots, side="left")
    inside = np.interp(scores, knots, -np.log(1.0 + as_high))
    beyond = np.maximum(scores - knots[-1], 0) + np.minimum(scores - knots[0], 0)
    return np.asarray(inside + beyond / position.spread)


def combined(scores: Sequence[Floats], known: Sequence[Floats], combine: Combine) -> Floats:
    """One score (N,) from the scores (N,) of each member; `known` as in `calibrated`, by member.

    `mean` is the mean of calibrated scores, `smallest_p` the largest, so that of the member whose
    p-value is the smallest. NaN where a score is.
    """
    parts = [calibrated(*pair, combine) for pair in zip(scores, known, strict=True)]
    if combine == "smallest_p":
        return np.asarray(np.maximum.reduce(parts))
    # One after the other: numpy's own sum may add in another order in batches of one.
    return np.asarray(sum(parts[1:], parts[0]) / len(parts))


def left_out(scores: Sequence[Floats], units: Sequence[Hashable], combine: Combine) -> Floats:
    """Combined scores (N,) of the held-out images themselves, from those of each member.

    Each image is calibrated on the others only, as a new image is: among scores that hold its own
    no image lies beyond all, and new good images would be anomalous up to as many times too often
    as there are members. Images of one unit, such as a part, are left out together, and those of
    each other unit count as one, as they do for a new image.
    """
    numbers = unit_numbers(units)
    order = [np.argsort(member, kind="stable") for member in scores]
    known = [(member[by], numbers[by]) for member, by in zip(scores, order, strict=True)]
    found = np.empty(len(units))
    for unit in range(numbers.max(initial=-1) + 1):
        others = [one_of_each(each[of != unit], of[of != unit]) for each, of in known]
        if not len(others[0]):
            raise UserError("all held-out images are of one part; hold out more parts")
        images = numbers == unit
        found[images] = combined([member[images] for member in scores], others, combine)
    return found
