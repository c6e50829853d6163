"""Warnings of a fit: what its model cannot promise, and what it took for good."""

from __future__ import annotations

import pyarrow.compute as pc

from jobs.cli.console import echo
from ops.archives.inventory import Inventory
from ops.detectors.model_card import ModelCard
from ops.plain_text import printable
from ops.results.decision_table import DEFECT
from ops.storage.paths import Out
from pipelines.tables import decisions

_WARNING = "warning: "


class FitWarnings:
    """Sentences that are shown when they are added."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Show and keep a warning; an empty one is none."""
        if sentence:
            echo(f"{_WARNING}{sentence}")
            self.sentences.append(sentence)

    def say(self, sentence: str) -> None:
        """Show a sentence of a fit, and keep it if it begins as a warning."""
        if sentence.startswith(_WARNING):
            self.add(sentence.removeprefix(_WARNING))
        else:
            echo(sentence)


def unlabelled(inventory: Inventory) -> str:
    """A sentence if no image of the fit is known to be good, so that all count as good."""
    rows = inventory.read(["label", "split", "problem"])
    usable = pc.is_null(rows["problem"])
    if rows["split"].null_count < len(rows):
        usable = pc.and_(usable, pc.fill_null(pc.equal(rows["split"], "train"), False))
    labels = rows["label"].filter(usable)
    if not len(labels) or labels.null_count < len(labels):
        return ""
    return (
        f"no labels: all {len(labels):,} images count as good. If some are defective, name labels "
        "in --pattern, such as {product}/{label}/{name}, or take them out of the folder"
    )


def decided_defects(inventory: Inventory, out: Out) -> str:
    """A sentence if people decided that images which count as good are defects."""
    if not decisions.published(out):
        return ""
    decided = decisions.current(out, "image_decisions")
    wrong = decided["image_id"].filter(pc.equal(decided["decision"], DEFECT))
    rows = inventory.read(["image_id", "label"])
    good = pc.fill_null(pc.equal(rows["label"], 0), True)
    if not (count := pc.sum(pc.and_(pc.is_in(rows["image_id"], wrong), good)).as_py()):
        return ""
    return (
        f"people decided that {count:,} of the listed images are defects, and here they count as "
        f"good; --labels {out.root} leaves them out"
    )


def shrunk(before: ModelCard, after: ModelCard) -> list[str]:
    """A sentence for each product of a grown model that fewer images, or parts, calibrate."""
    sentences = []
    for name, card in before.products.items():
        was, now = (len(each.calibration.scores) for each in (card, after.products[name]))
        if now < was:
            sentences.append(
                f"{printable(name)}: {now:,} held-out images, or parts, calibrate the grown model, "
                f"{was:,} calibrated the one before: the others cannot be read any more, have "
                "changed, or were decided to be defects. Restore them, or add good images"
            )
    return sentences
