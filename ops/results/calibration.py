"""Calibration: p-values and thresholds from the scores of held-out good images.

A unit is what is drawn independently of others: a part, or an image of no part.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ops.errors import SettingError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Split-conformal calibration of one product's scores (Vovk et al. 2005; Bates et al. 2023)."""

    scores: tuple[float, ...]
    """A score for each held-out unit, ascending. May be empty; then there are no p-values."""

    @classmethod
    def of(cls, scores: Sequence[float], units: Sequence[Hashable] | None = None) -> Calibration:
        """A calibration from scores in any order, and the unit of each (default: its own).

        Images of one part look alike, so n parts are n observations however many images they have.
        A score weighs 1 / images of its unit, and the k-th score of the calibration, from the top,
        is the highest one at which these shares exceed k - 1. So `p_values` are those of
        hierarchical conformal prediction (Lee, Barber and Willett 2023), rounded up to multiples of
        1 / (1 + number of units). Without units they are the scores themselves.
        """
        values = np.asarray(scores, np.float64)
        if units is None:
            return cls(tuple(np.sort(values).tolist()))
        order = np.argsort(values)
        return cls(tuple(one_of_each(values[order], unit_numbers(units)[order]).tolist()))

    def p_values(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(1 + number of held-out scores >= score) / (1 + number of held-out scores), for each.

        A good image of a part drawn at random gets a p-value of at most a with probability at most
        a. NaN without held-out scores.
        """
        if not self.scores:
            return np.full(scores.shape, np.nan)
        above = len(self.scores) - np.searchsorted(np.asarray(self.scores), scores, side="left")
        return np.asarray((1 + above) / (1 + len(self.scores)), dtype=np.float64)

    def threshold(self, false_alarm_rate: float) -> float | None:
        """The score above which an image is anomalous; good images exceed it at most at this rate.

        With fewer than 1 / rate - 1 held-out units no threshold guarantees the rate. Then it is
        the largest held-out score, which guarantees `promised_rate`. None without held-out units.
        """
        rank = _rank(false_alarm_rate, len(self.scores))
        return self.scores[rank - 1] if rank else None

    def promised_rate(self, false_alarm_rate: float) -> float | None:
        """The false-alarm rate that `threshold(false_alarm_rate)` guarantees; None without one."""
        rate = promised_rate(false_alarm_rate, len(self.scores))
        return rate if self.scores else None


def unit_numbers(units: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """The number of each unit (N,), from 0."""
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    return np.array([numbers[unit] for unit in units], np.int64)


def one_of_each(scores: Floats, units: npt.NDArray[np.int64]) -> Floats:
    """A score for each unit, ascending: see `Calibration.of`.

    `scores` (N,) ascend, `units` (N,) are numbers. Shares are added as whole numbers of their
    smallest common part: the sum of a million thirds would round by more than a share.
    """
    sizes = np.bincount(units)
    count = int(np.count_nonzero(sizes))
    if count == len(units):
        return scores
    whole = math.lcm(*np.unique(sizes[sizes > 0]).tolist())
    kind = np.int64 if count * whole < 2**63 else object
    shares = np.array(whole, kind) // np.maximum(sizes, 1).astype(kind)
    above = np.cumsum(shares[units[::-1]])
    places = np.searchsorted(above, np.arange(count, dtype=kind) * whole, side="right")
    return np.asarray(scores[::-1][places][::-1])


def promised_rate(false_alarm_rate: float, held_out: int) -> float:
    """The false-alarm rate that the threshold for a requested rate guarantees.

    It is the largest p-value that is anomalous: a multiple of 1 / (1 + held_out), at most the
    requested rate if `held_out`, the number of units, is at least 1 / rate - 1, and 1 if it is 0.
    """
    return (held_out + 1 - _rank(false_alarm_rate, held_out)) / (held_out + 1)


def _rank(false_alarm_rate: float, held_out: int) -> int:
    """The threshold is the score of this rank, from 1; 0 if no unit is held out."""
    if not 0 < false_alarm_rate < 1:
        raise SettingError(f"false_alarm_rate {false_alarm_rate} must lie between 0 and 1")
    # 1e-9 absorbs the rounding of rates that are multiples of 1 / (1 + held_out).
    return min(held_out, math.ceil((held_out + 1) * (1 - false_alarm_rate) - 1e-9))
