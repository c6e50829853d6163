"""Calibration: p-values and thresholds from the scores of held-out good images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ops.errors import SettingError


@dataclass(frozen=True)
class Calibration:
    """Split-conformal calibration of one product's scores (Vovk et al. 2005; Bates et al. 2023)."""

    scores: tuple[float, ...]
    """Scores of held-out good images, ascending. May be empty; then there are no p-values."""

    @classmethod
    def of(cls, scores: Sequence[float]) -> Calibration:
        """A calibration from scores in any order."""
        return cls(tuple(sorted(float(score) for score in scores)))

    def p_values(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(1 + number of held-out scores >= score) / (1 + number of held-out scores), for each.

        A good image gets a p-value of at most a with probability at most a. NaN without held-out
        scores.
        """
        if not self.scores:
            return np.full(scores.shape, np.nan)
        above = len(self.scores) - np.searchsorted(np.asarray(self.scores), scores, side="left")
        return np.asarray((1 + above) / (1 + len(self.scores)), dtype=np.float64)

    def threshold(self, false_alarm_rate: float) -> float | None:
        """The score above which an image is anomalous; good images exceed it at most at this rate.

        With fewer than 1 / rate - 1 held-out images no threshold guarantees the rate. Then it is
        the largest held-out score, which guarantees `promised_rate`. None without held-out images.
        """
        rank = _rank(false_alarm_rate, len(self.scores))
        return self.scores[rank - 1] if rank else None

    def promised_rate(self, false_alarm_rate: float) -> float | None:
        """The false-alarm rate that `threshold(false_alarm_rate)` guarantees; None without one."""
        rate = promised_rate(false_alarm_rate, len(self.scores))
        return rate if self.scores else None


def promised_rate(false_alarm_rate: float, held_out: int) -> float:
    """The false-alarm rate that the threshold for a requested rate guarantees.

    It is the largest p-value that is anomalous: a multiple of 1 / (1 + held_out), at most the
    requested rate if `held_out` is at least 1 / rate - 1, and 1 if no image is held out.
    """
    return (held_out + 1 - _rank(false_alarm_rate, held_out)) / (held_out + 1)


def _rank(false_alarm_rate: float, held_out: int) -> int:
    """The threshold is the score of this rank, from 1; 0 if no image is held out."""
    if not 0 < false_alarm_rate < 1:
        raise SettingError(f"false_alarm_rate {false_alarm_rate} must lie between 0 and 1")
    # 1e-9 absorbs the rounding of rates that are multiples of 1 / (1 + held_out).
    return min(held_out, math.ceil((held_out + 1) * (1 - false_alarm_rate) - 1e-9))
