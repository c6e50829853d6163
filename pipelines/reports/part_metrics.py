"""Metrics of parts: each part counts once, by the highest score of its images."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ops.results import metrics


def part_metrics(ok: pa.Table) -> dict[str, Any]:
    """Metrics of the parts of one product from its scored, labelled images; empty without parts.

    The score of a part is the highest of its images, and it is defective if one of them is, as in
    the sample-level AUROC of Real-IAD (Wang et al. 2024).
    """
    of_parts = ok.filter(pc.is_valid(ok["part"]))
    if not len(of_parts):
        return {}
    parts = of_parts.group_by("part").aggregate([("score", "max"), ("label", "max")])
    scores, labels = parts["score_max"].to_numpy(), parts["label_max"].to_numpy() == 1
    curve = metrics.roc(scores, labels)
    return {
        "good_parts": int((~labels).sum()),
        "defective_parts": int(labels.sum()),
        "part_auroc": curve and curve.area(),
        "part_ap": metrics.average_precision(scores, labels),
    }
