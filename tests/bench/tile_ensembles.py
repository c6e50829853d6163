"""Several detectors of the benchmark as one, by what they say of the same held-out images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ops.detectors.ensemble import mean_map
from ops.results.combination import Position, combined
from tests.bench.tile_metrics import Answers


def combine(members: Sequence[tuple[Answers, Answers]]) -> Answers:
    """Mean scores and maps as those of `jobs.ensemble`.

    A member is what it says of the images that are scored, and of held-out good ones.
    """
    known = [np.sort(np.array(held_out.scores)) for _, held_out in members]
    scores = combined([np.array(scored.scores) for scored, _ in members], known, "mean")
    peaks = [
        Position.of(np.sort([float(values.max()) for values in held_out.maps]))
        for _, held_out in members
    ]
    maps = zip(*(scored.maps for scored, _ in members), strict=True)
    return Answers(
        scores.tolist(),
        [mean_map(of_image, peaks) for of_image in maps],
        sum(scored.seconds for scored, _ in members),
    )
