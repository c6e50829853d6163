"""Pictures of how well one product's defects are told apart: ROC, PRO, and both kinds' scores."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ops.metrics import Curve, Floats

PRO_LIMIT = 0.3
_GOOD, _DEFECTIVE = "tab:blue", "tab:red"


@dataclass(frozen=True)
class Separation:
    """What a picture shows of one product; None and empty arrays where there is nothing to show."""

    product: str
    good: Floats
    """Scores of good images."""
    defective: Floats
    """Scores of defective images."""
    threshold: float | None
    """Scores above it are anomalous to the model."""
    image_roc: Curve | None
    pixel_roc: Curve | None = None
    pro: Curve | None = None


def draw(found: Separation) -> bytes:
    """A PNG of three panels. Curves are thinned for it; their areas are those of all points."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second that only drawing needs

    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    figure.suptitle(found.product, parse_math=False)
    roc, pro, scores = figure.subplots(1, 3)
    _roc(roc, found)
    _pro(pro, found.pro)
    _scores(scores, found)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that no font here has
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _roc(panel: Any, found: Separation) -> None:
    for kind, curve in (("images", found.image_roc), ("pixels", found.pixel_roc)):
        if curve:
            few = curve.thinned()
            panel.plot(few.x, few.y, label=f"{kind}: AUROC {curve.area():.4f}")
    panel.plot([0, 1], [0, 1], color="lightgrey", linestyle=":", zorder=0)
    panel.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    _legend(panel, "lower right")


def _pro(panel: Any, curve: Curve | None) -> None:
    if curve:
        few = curve.thinned()
        label = f"AUPRO up to {PRO_LIMIT}: {curve.area(PRO_LIMIT):.4f}"
        panel.plot(few.x, few.y, label=label)
    panel.set(title="per-region overlap", xlabel="false positive rate", ylabel="mean overlap")
    panel.set(xlim=(0, PRO_LIMIT), ylim=(0, 1.05))
    _legend(panel, "lower right")


def _scores(panel: Any, found: Separation) -> None:
    both = np.concatenate([found.good, found.defective])
    edges = np.histogram_bin_edges(both, bins=40)
    kinds = (("good", found.good, _GOOD), ("defective", found.defective, _DEFECTIVE))
    for kind, values, colour in kinds:
        panel.hist(values, edges, color=colour, alpha=0.55, label=f"{len(values)} {kind}")
    if found.threshold is not None:
        label = f"the model's threshold {found.threshold:.4g}"
        panel.axvline(found.threshold, color="black", linestyle="--", label=label)
    panel.margins(y=0.3)  # room for the legend
    panel.set(title="scores", xlabel="score of an image", ylabel="images")
    _legend(panel, "upper right")


def _legend(panel: Any, corner: str) -> None:
    if panel.get_legend_handles_labels()[0]:
        panel.legend(loc=corner, fontsize="small")
    else:
        panel.text(0.5, 0.5, "not known", transform=panel.transAxes, ha="center", color="grey")
