"""What turns a raw score into a p-value: the sorted scores of held-out good images."""

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
    """Scores of held-out good images, ascending; may be empty, then nothing is known."""

    @classmethod
    def of(cls, scores: Sequence[float]) -> Calibration:
        """From scores in any order."""
        return cls(tuple(sorted(float(score) for score in scores)))

    def p_values(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(1 + held-out scores at or above) / (1 + held-out scores); NaN if there are none.

        The chance that a good image gets a p-value of at most a is at most a.
        """
        if not self.scores:
            return np.full(scores.shape, np.nan)
        above = len(self.scores) - np.searchsorted(np.asarray(self.scores), scores, side="left")
        return np.asarray((1 + above) / (1 + len(self.scores)), dtype=np.float64)

    def threshold(self, false_alarm_rate: float) -> float | None:
        """Scores above this are anomalous; good images exceed it at most at this rate.

        With fewer than 1/rate - 1 held-out images no threshold can promise the rate; then it is
        the largest held-out score, and `promised_rate` says what that is worth. None without any.
        """
        rank = self._rank(false_alarm_rate)
        return self.scores[rank - 1] if rank else None

    def promised_rate(self, false_alarm_rate: float) -> float | None:
        """The share of good images that may exceed `threshold(false_alarm_rate)`."""
        rank = self._rank(false_alarm_rate)
        return 1 - rank / (len(self.scores) + 1) if rank else None

    def _rank(self, false_alarm_rate: float) -> int:
        if not 0 < false_alarm_rate < 1:
            raise SettingError(f"false alarm rate {false_alarm_rate} must lie between 0 and 1")
        count = len(self.scores)
        return min(count, math.ceil((count + 1) * (1 - false_alarm_rate) - 1e-9))
