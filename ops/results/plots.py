"""Pictures of one product: how well its defects are told apart, and how two runs score it."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ops.results.metrics import Curve, Floats

PRO_LIMIT = 0.3
POINTS = 5000
"""Images that a scatter shows at most."""
_GOOD, _DEFECTIVE = "tab:blue", "tab:red"
_BEFORE, _AFTER = "tab:grey", "tab:purple"


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


@dataclass(frozen=True)
class Shift:
    """What a picture shows of one product in two runs; empty arrays where there is nothing."""

    product: str
    measure: str
    """What the values of the histograms are."""
    before: Floats
    """Values of the first run."""
    after: Floats
    """Values of the second run."""
    pair_kind: str
    """What the values of the pairs are."""
    pairs: tuple[Floats, Floats]
    """Values of the same images in both runs; the first `POINTS` are drawn."""
    threshold: float | None
    """The model's, if both runs have the same."""
    runs: tuple[str, str]
    words: str = ""
    """What the drift measures say."""


def draw(found: Separation) -> bytes:
    """A PNG of three panels. Curves are thinned for it; their areas are those of all points."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second that only drawing needs

    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    figure.suptitle(found.product, parse_math=False)
    roc, pro, scores = figure.subplots(1, 3)
    _roc(roc, found)
    _pro(pro, found.pro)
    _scores(scores, found)
    return _png(figure)


def draw_shift(found: Shift) -> bytes:
    """A PNG of two panels: both runs' values as histograms, and image against image."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second that only drawing needs

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(found.product, parse_math=False)
    values, images = figure.subplots(1, 2)
    _shifted(values, found)
    _against(images, found)
    return _png(figure)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that no font here has
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _shifted(panel: Any, found: Shift) -> None:
    """Shares, not counts: a night may hold more images than the other."""
    both = np.concatenate([found.before, found.after])
    edges = np.histogram_bin_edges(both, bins=40)
    kinds = ((found.runs[0], found.before, _BEFORE), (found.runs[1], found.after, _AFTER))
    for run, values, colour in kinds:
        if len(values):
            share = np.full(len(values), 1 / len(values))
            label = f"{run}: {len(values)} images"
            panel.hist(values, edges, weights=share, color=colour, alpha=0.55, label=label)
    _mark(panel.axvline, found.threshold)
    panel.margins(y=0.3)  # room for the legend
    panel.set(title=found.words, xlabel=found.measure, ylabel="share of images")
    _legend(panel, "upper right")


def _against(panel: Any, found: Shift) -> None:
    x, y = (values[:POINTS] for values in found.pairs)
    if len(x):
        low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
        panel.plot([low, high], [low, high], color="lightgrey", linestyle=":", zorder=0)
        label = f"{len(x)} images of both"
        panel.plot(x, y, ".", markersize=3, alpha=0.5, color=_AFTER, label=label)
        _mark(panel.axvline, found.threshold)
        _mark(panel.axhline, found.threshold)
    first, second = (f"{found.pair_kind}, {run}" for run in found.runs)
    panel.set(title="image by image", xlabel=first, ylabel=second)
    _legend(panel, "upper left")


def _mark(line: Any, threshold: float | None) -> None:
    if threshold is not None:
        line(threshold, color="black", linestyle="--", linewidth=1)


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
