"""The false-alarm rate that decisions speak for, given what a missed defect and a look cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ops.errors import SettingError

Counts = npt.NDArray[np.int64]
#: Bounds of costs.
_LEAST, _MOST = 1e-9, 1e12


@dataclass(frozen=True)
class Costs:
    """What errors cost, in any one unit."""

    miss: float
    """A defective part that is not flagged."""
    look: float
    """A look at a part that is flagged."""

    def __post_init__(self) -> None:
        """Raise SettingError for one from which no sum of costs can be computed."""
        for name, value in (("miss", self.miss), ("look", self.look)):
            if not _LEAST <= value <= _MOST:
                raise SettingError(
                    f"{name}_cost {value:g} must lie between {_LEAST:g} and {_MOST:g}, such as 50"
                )

    @property
    def decisions_needed(self) -> int:
        """The fewest decisions, all of them false alarms, that can speak for fewer looks.

        With n of them a share of 1 / (n + 2) of such parts is expected to be defective, by the rule
        of succession; looking at them is not worth it below look / miss.
        """
        return max(1, math.floor(self.miss / self.look) - 1)


@dataclass(frozen=True)
class Levels:
    """Scored images of one product by p-value: entry k is of those with p-value (k + 1) / (n + 1).

    n is the number of held-out units, so these are all the p-values that there are.
    """

    images: Counts
    defects: Counts
    """Those that people decided to be defects."""
    false_alarms: Counts
    """Those that people decided to be false alarms."""


@dataclass(frozen=True)
class Proposal:
    """A false-alarm rate, and what it would have changed."""

    present: float
    """The rate that thresholds guarantee now."""
    proposed: float
    """Equal to the present one if decisions speak for no other."""
    flagged_before: int
    flagged_after: int
    saved: int
    """Images that people decided to be false alarms, and that are no longer flagged."""
    missed: int
    """Images that people decided to be defects, and that are no longer flagged."""
    caught: int
    """Decided defects that are flagged, and were not."""
    decided: int
    """Decisions on images that are flagged at the present rate."""
    decided_below: int
    """Decisions on images that are not."""
    cost: float
    """The expected change of cost; at most 0."""


def propose(levels: Levels, present: int, costs: Costs) -> Proposal:
    """The rate of the lowest expected cost over images like these; `present` is the level now.

    Candidates are the rates k / (n + 1), which calibration can promise. Of the images between a
    lower rate and the present one, the share of defects that is expected is
    (defects + 1) / (decided + 2), the rule of succession over the decided ones. Of those that a
    higher rate would flag, only decided defects count: people are shown flagged images, and others
    by chance or because they are defects. Of equal costs the rate nearest to the present is taken.
    """
    images, defects, alarms = (
        np.concatenate([[0], np.cumsum(each)])
        for each in (levels.images, levels.defects, levels.false_alarms)
    )
    count = len(levels.images)
    level = np.arange(count + 1)
    looks = images - images[present]  # further ones, negative at lower rates
    lost, dropped = defects[present] - defects, alarms[present] - alarms
    decided = np.maximum(lost + dropped, 0)
    share = (lost + 1) / (decided + 2)
    missed = np.where(level < present, -looks * share, lost)
    cost = costs.look * looks + costs.miss * missed
    cost[(level < present) & (decided < costs.decisions_needed)] = np.inf
    cost[[0, count]] = np.inf  # no rate, and all images
    cost[present] = 0.0
    best = min(range(1, count), key=lambda k: (cost[k], abs(k - present)))
    return Proposal(
        present=present / count,
        proposed=best / count,
        flagged_before=int(images[present]),
        flagged_after=int(images[best]),
        saved=max(0, int(dropped[best])),
        missed=max(0, int(lost[best])),
        caught=max(0, int(-lost[best])),
        decided=int(defects[present] + alarms[present]),
        decided_below=int(defects[-1] - defects[present] + alarms[-1] - alarms[present]),
        cost=float(cost[best]),
    )
