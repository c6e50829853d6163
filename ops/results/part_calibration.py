"""Calibration of parts of several images: one p-value for a part, whatever its images say.

A part counts by its worst view. Its p-value is split-conformal over parts (Vovk et al. 2005): parts
are exchangeable, their images are not, because those of one part look alike. Where one detector
scores all views, the statistic of a part is its highest score. Where views have detectors of their
own, whose scores have no common unit, each view's scores are first divided by their deviation; mean
and deviation are those of the held-out parts and of the part in question, so that it is treated as
they are, and the p-value stays exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ops.archives.views import Views

Floats = npt.NDArray[np.float64]
#: Scores of parts that are compared with all held-out ones at once.
_AT_ONCE = 2**22


class JudgedParts(NamedTuple):
    """What follows from the scores of N parts."""

    p_values: Floats
    """(N,); NaN where no held-out part has all views that have a score, or none has one."""
    held_out: npt.NDArray[np.int64]
    """(N,), how many held-out parts a part was compared with."""
    worst: npt.NDArray[np.int64]
    """(N,), the number of the worst view; -1 where there is no p-value."""


@dataclass(frozen=True)
class PartCalibration:
    """The held-out parts of one product."""

    views: tuple[str, ...]
    """Names of the views, sorted; "" for images without one."""
    scores: tuple[tuple[float | None, ...], ...]
    """Of each held-out part the highest score of each view; None where it has none."""
    standardised: bool = False
    """Whether views have detectors of their own."""

    def to_json(self) -> dict[str, Any]:
        """The calibration as JSON values."""
        scores = [list(part) for part in self.scores]
        return {"views": list(self.views), "scores": scores, "standardised": self.standardised}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PartCalibration:
        """A calibration from what `to_json` gave. Raises ValueError if a part lacks a view."""
        views = tuple(map(str, content["views"]))
        scores = tuple(tuple(part) for part in content["scores"])
        if any(len(part) != len(views) for part in scores):
            raise ValueError(f"a part has not a score for each of {len(views)} views")
        return cls(views, scores, bool(content["standardised"]))

    def judge(self, scores: Floats) -> JudgedParts:
        """Judge parts by their scores (N, V), in the order of `views`; NaN where one has none.

        A good part gets a p-value of at most a with probability at most a, if the views that lack
        a score lack it for reasons that say nothing about the part. It is compared with the
        held-out parts that have all of its views, by these views.
        """
        count = len(scores)
        judged = JudgedParts(
            np.full(count, np.nan), np.zeros(count, np.int64), np.full(count, -1, np.int64)
        )
        known = np.array(self.scores, np.float64).reshape(len(self.scores), len(self.views))
        patterns, inverse = np.unique(np.isfinite(scores), axis=0, return_inverse=True)
        for number, has in enumerate(patterns):
            reference = known[np.isfinite(known[:, has]).all(axis=1)][:, has]
            rows = np.flatnonzero(inverse.reshape(-1) == number)
            if not has.any() or not len(reference):
                continue
            above, worst = self._compared(scores[rows][:, has], reference)
            judged.p_values[rows] = (1 + above) / (1 + len(reference))
            judged.held_out[rows] = len(reference)
            judged.worst[rows] = np.flatnonzero(has)[worst]
        return judged

    def _compared(
        self, scores: Floats, reference: Floats
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """How many held-out parts are as bad as each part, and the number of its worst view."""
        if not self.standardised:
            known = np.sort(reference.max(axis=1))
            above = len(known) - np.searchsorted(known, scores.max(axis=1), side="left")
            return above.astype(np.int64), scores.argmax(axis=1)
        parts = [
            _standardised(scores[start : start + step], reference)
            for step in [max(1, _AT_ONCE // reference.size)]
            for start in range(0, len(scores), step)
        ]
        counts, places = zip(*parts, strict=True)
        return np.concatenate(counts), np.concatenate(places)


def _standardised(
    scores: Floats, reference: Floats
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As `PartCalibration._compared`, for scores (N, V) whose views have units of their own.

    A view in which all scores are equal says nothing.
    """
    count = len(reference)
    centre = reference.mean(axis=0)
    known, mine = reference - centre, scores - centre
    # Mean and variance of the held-out parts and one part more; those of the former are known.
    mean = mine / (count + 1)
    variance = (known**2).sum(axis=0) / (count + 1) + mine**2 * count / (count + 1) ** 2
    deviation = np.sqrt(variance)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    theirs = (known[None] - mean[:, None]) * scale[:, None]  # (N, held-out, V)
    values = (mine - mean) * scale
    above = (theirs.max(axis=2) >= values.max(axis=1)[:, None]).sum(axis=1)
    return above.astype(np.int64), values.argmax(axis=1)


@dataclass
class HeldOutParts:
    """Collects the scores of held-out images by part."""

    detectors: Views
    """Whether views have detectors of their own."""
    _scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the row of a scored image; images of no part are left out."""
        if row["part"] is None:
            return
        views = self._scores.setdefault(row["product"], {}).setdefault(row["part"], {})
        view = row["view"] or ""
        views[view] = max(views.get(view, -np.inf), float(row["score"]))

    def calibrations(self) -> dict[str, PartCalibration]:
        """The calibration of each product with parts; equal however the rows were ordered."""
        found = {}
        for product, parts in self._scores.items():
            views = tuple(sorted({view for part in parts.values() for view in part}))
            rows = [tuple(parts[part].get(view) for view in views) for part in sorted(parts)]
            found[product] = PartCalibration(views, tuple(rows), self.detectors == "separate")
        return found
