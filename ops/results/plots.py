"""Plots of one product: how well scores separate its defects, and how two runs score it."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ops.plain_text import printable
from ops.results.metrics import Curve, Floats

PRO_LIMIT = 0.3
POINTS = 5000
"""The largest number of images in a scatter plot."""
_GOOD, _DEFECTIVE = "tab:blue", "tab:red"
_BEFORE, _AFTER = "tab:grey", "tab:purple"


@dataclass(frozen=True)
class Separation:
    """The data of `draw_separation`; None and empty arrays where something is unknown."""

    product: str
    good: Floats
    """Scores of good images."""
    defective: Floats
    """Scores of defective images."""
    threshold: float | None
    """The model's: images with higher scores are anomalous."""
    image_roc: Curve | None
    pixel_roc: Curve | None = None
    pro: Curve | None = None


@dataclass(frozen=True)
class Shift:
    """The data of `draw_shift`; empty arrays where something is unknown."""

    product: str
    measure: str
    """The quantity in the histograms: label of their axis."""
    before: Floats
    """Values of the first side."""
    after: Floats
    """Values of the second side."""
    pair_kind: str
    """The quantity in the scatter plot: label of its axes."""
    pairs: tuple[Floats, Floats]
    """Values of the same images on both sides; the first `POINTS` are drawn."""
    threshold: float | None
    """The model's threshold, if both sides have the same model."""
    sides: tuple[str, str]
    """Names of both sides, which are runs or models."""
    title: str = ""
    """Title of the histograms, such as the drift measures."""


def draw_separation(separation: Separation) -> bytes:
    """A PNG of ROC, per-region overlap and score histograms; areas are of the full curves."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes a second, and only plots need it

    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    figure.suptitle(printable(separation.product), parse_math=False)
    roc, pro, scores = figure.subplots(1, 3)
    _roc_panel(roc, separation)
    _pro_panel(pro, separation.pro)
    _score_histogram(scores, separation)
    return _png(figure)


def draw_shift(shift: Shift) -> bytes:
    """A PNG of two panels: histograms of both sides' values, and a scatter plot of images."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes a second, and only plots need it

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(printable(shift.product), parse_math=False)
    values, images = figure.subplots(1, 2)
    _histograms(values, shift)
    _scatter(images, shift)
    return _png(figure)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # characters that no installed font has
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _plain(name: str) -> str:
    """A name as a label shows it: without control characters, and not read as mathematics."""
    return printable(name).replace("$", r"\$")


def _histograms(panel: Any, shift: Shift) -> None:
    """Histograms of shares, not counts, because the sides may differ in their number of images."""
    both = np.concatenate([shift.before, shift.after])
    edges = np.histogram_bin_edges(both, bins=40)
    first, second = map(_plain, shift.sides)
    for side, values, colour in ((first, shift.before, _BEFORE), (second, shift.after, _AFTER)):
        if len(values):
            share = np.full(len(values), 1 / len(values))
            label = f"{side}: {len(values)} images"
            panel.hist(values, edges, weights=share, color=colour, alpha=0.55, label=label)
    _draw_threshold(panel.axvline, shift.threshold)
    panel.margins(y=0.3)  # room for the legend
    panel.set(title=shift.title, xlabel=shift.measure, ylabel="share of images")
    _legend(panel, "upper right")


def _scatter(panel: Any, shift: Shift) -> None:
    x, y = (values[:POINTS] for values in shift.pairs)
    if len(x):
        low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
        panel.plot([low, high], [low, high], color="lightgrey", linestyle=":", zorder=0)
        label = f"{len(x)} images of both"
        panel.plot(x, y, ".", markersize=3, alpha=0.5, color=_AFTER, label=label)
        _draw_threshold(panel.axvline, shift.threshold)
        _draw_threshold(panel.axhline, shift.threshold)
    first, second = (f"{shift.pair_kind}, {_plain(side)}" for side in shift.sides)
    panel.set(title="image by image", xlabel=first, ylabel=second)
    _legend(panel, "upper left")


def _draw_threshold(line: Any, threshold: float | None) -> None:
    if threshold is not None:
        line(threshold, color="black", linestyle="--", linewidth=1)


def _roc_panel(panel: Any, separation: Separation) -> None:
    for kind, curve in (("images", separation.image_roc), ("pixels", separation.pixel_roc)):
        if curve:
            few = curve.thinned()
            panel.plot(few.x, few.y, label=f"{kind}: AUROC {curve.area():.4f}")
    panel.plot([0, 1], [0, 1], color="lightgrey", linestyle=":", zorder=0)
    panel.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    _legend(panel, "lower right")


def _pro_panel(panel: Any, curve: Curve | None) -> None:
    if curve:
        few = curve.thinned()
        label = f"AUPRO up to {PRO_LIMIT}: {curve.area(PRO_LIMIT):.4f}"
        panel.plot(few.x, few.y, label=label)
    panel.set(title="per-region overlap", xlabel="false positive rate", ylabel="mean overlap")
    panel.set(xlim=(0, PRO_LIMIT), ylim=(0, 1.05))
    _legend(panel, "lower right")


def _score_histogram(panel: Any, separation: Separation) -> None:
    both = np.concatenate([separation.good, separation.defective])
    edges = np.histogram_bin_edges(both, bins=40)
    kinds = (("good", separation.good, _GOOD), ("defective", separation.defective, _DEFECTIVE))
    for kind, values, colour in kinds:
        panel.hist(values, edges, color=colour, alpha=0.55, label=f"{len(values):,} {kind}")
    if separation.threshold is not None:
        label = f"the model's threshold {separation.threshold:.4g}"
        panel.axvline(separation.threshold, color="black", linestyle="--", label=label)
    panel.margins(y=0.3)  # room for the legend
    panel.set(title="scores", xlabel="score of an image", ylabel="images")
    _legend(panel, "upper right")


def _legend(panel: Any, corner: str) -> None:
    if panel.get_legend_handles_labels()[0]:
        panel.legend(loc=corner, fontsize="small")
    else:
        panel.text(0.5, 0.5, "unknown", transform=panel.transAxes, ha="center", color="grey")
