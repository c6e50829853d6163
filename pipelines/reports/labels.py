"""Labels from an inventory, joined to the rows of a run.

The inventory may be older than the run. An image whose version it lists gets the label of that
version. An image of another version, as after its archive was rewritten, gets the label of its
address; how many did, and what did not join, is counted.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ops.archives.layouts import OF_MODELS

#: Columns that a join adds to the rows of a score table.
_ADDED = ("label", "mask_uri", "member", "bytes")


class Joined(NamedTuple):
    """How labels were joined to images, as counts."""

    by_address: int
    """Images with the label of another version of their address."""
    ambiguous: int
    """Images without a label, as members of one name in one archive have different ones."""
    unmatched: int
    """Labelled images whose address no image of the run has."""
    unlisted: int
    """Images of the run whose address is not listed beside the labels."""

    def sentences(self) -> list[str]:
        """What people must know, a sentence each; none if all joined by version."""
        counts = (
            (
                self.by_address,
                "images have another version than the one that was labelled; they are taken with "
                "the label of their address",
            ),
            (
                self.ambiguous,
                "images have another version than the labelled ones of their address, which "
                "differ; they are left out",
            ),
            (self.unmatched, "labelled images are not in the run"),
            (self.unlisted, "images of the run are not listed beside the labels"),
        )
        return [f"labels: {count} {what}" for count, what in counts if count]


class Labelled(NamedTuple):
    """The labelled rows of a run, with `label`, `mask_uri`, `member` and `bytes`, and counts."""

    rows: pa.Table
    joined: Joined


def join_labels(scored: pa.Table, listed: pa.Table) -> Labelled:
    """Join rows of a score table with the labels of an inventory.

    Rows of splits `train` and `validation` have no label here: models are made of them.
    """
    unseen = pc.invert(pc.is_in(listed["split"], pa.array(OF_MODELS)))
    test = listed.filter(pc.and_(unseen, pc.is_valid(listed["label"])))
    same = scored.join(test.select(["image_id", *_ADDED]), "image_id", join_type="inner")
    others = scored.filter(pc.invert(pc.is_in(scored["image_id"], listed["image_id"])))
    of_address = others.join(_by_address(test), "uri", join_type="inner")
    clear = of_address.filter(pc.is_valid(of_address["label"]))
    rows = pa.concat_tables([same, clear.select(same.column_names).cast(same.schema)])
    is_matched = pc.is_in(test["uri"], scored["uri"])
    is_listed = pc.is_in(scored["uri"], listed["uri"])
    counts = Joined(
        by_address=len(clear),
        ambiguous=len(of_address) - len(clear),
        unmatched=len(test) - (pc.sum(is_matched).as_py() or 0),
        unlisted=len(scored) - (pc.sum(is_listed).as_py() or 0),
    )
    return Labelled(rows, counts)


def _by_address(test: pa.Table) -> pa.Table:
    """One row for each address; without a label or mask where its members disagree.

    The place of a member is that of the listed version, so it is left out.
    """
    both = [(name, how) for name in ("label", "mask_uri") for how in ("min", "max")]
    found = test.group_by("uri").aggregate(both)

    def agreed(name: str) -> pa.ChunkedArray:
        agrees = pc.equal(found[f"{name}_min"], found[f"{name}_max"])
        return pc.if_else(agrees, found[f"{name}_min"], None)

    nothing = pa.nulls(len(found), pa.int64())
    columns = [found["uri"], agreed("label"), agreed("mask_uri"), nothing, nothing]
    return pa.table(columns, names=["uri", *_ADDED])
