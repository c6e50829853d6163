"""Warnings of a fit: what its model cannot promise, and what it took for good."""

from __future__ import annotations

import pyarrow.compute as pc

from jobs.cli.console import echo
from ops.archives.inventory import Inventory
from ops.detectors.model_folder import ModelCard
from ops.plain_text import printable

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


def shrunk(before: ModelCard, after: ModelCard) -> list[str]:
    """A sentence for each product of a grown model that fewer images calibrate than before."""
    sentences = []
    for name, card in before.products.items():
        was, now = (len(each.calibration.scores) for each in (card, after.products[name]))
        if now < was:
            sentences.append(
                f"{printable(name)}: {now:,} held-out images calibrate the grown model, {was:,} "
                "calibrated the one before: the others cannot be read any more, or have changed. "
                "Restore them, or add good images"
            )
    return sentences
