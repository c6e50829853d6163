"""Labels from an inventory and decisions of people, joined to the rows of a run.

The inventory may be older than the run. An image whose version it lists gets the label of that
version. An image of another version, as after its archive was rewritten, gets the label of its
address; how many did, and what did not join, is counted. A decision is of the bytes that were
shown, and goes before the label of the inventory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ops.archives.layouts import OF_MODELS
from ops.results.decision_table import DEFECT, UNSURE

#: Columns that a join adds to the rows of a score table.
_ADDED = ("label", "mask_uri", "member", "bytes")


class Joined(NamedTuple):
    """How labels were joined to images, as counts."""

    by_address: int
    """Images with the label of another version of their address."""
    ambiguous: int
    """Images without a label, as members of one name in one archive have different ones."""
    unmatched: int
    """Labelled images whose address no scored image has."""
    unlisted: int
    """Scored images whose address is not listed beside the labels."""
    decided: int = 0
    """Images with the label of a person."""
    contradicted: int = 0
    """Of these, images that the inventory labels otherwise."""
    called_good: int = 0
    """Of these, images that the model does not call anomalous."""
    unsure: int = 0
    """Images without a label, as a person looked and could not tell."""
    unsplit: int = 0
    """Good images that the inventory puts into no split."""

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
            (self.unmatched, "labelled images have no row of scores"),
            (self.unlisted, "scored images are not listed beside the labels"),
            (
                self.decided,
                f"images have the label of a person, of which {self.contradicted} contradict the "
                f"inventory; the model calls {self.called_good} of them good. Of the defects "
                "that it calls good, only those are counted as missed that the inventory labels or "
                "a person found",
            ),
            (self.unsure, "images are left out, as a person could not tell what they are"),
            (
                self.unsplit,
                "labelled good images have no split; of those that a model was fitted on, only the "
                "ones that calibrated it or are in its bank are known and left out",
            ),
        )
        return [f"labels: {count} {what}" for count, what in counts if count]


class Labelled(NamedTuple):
    """The labelled rows of a run, with `label`, `mask_uri`, `member` and `bytes`, and counts."""

    rows: pa.Table
    joined: Joined


def join_labels(
    scored: pa.Table,
    listed: pa.Table,
    decided: pa.Table | None = None,
    grown_by: Sequence[str] = (),
) -> Labelled:
    """Join rows of a score table with the labels of an inventory, and with decisions if given.

    Rows of splits `train` and `validation`, and images that the model was `grown_by` (their ids),
    have no label here: models are made of them. `decided` has one decision for each image, as
    `decisions.current` gives it.
    """
    seen = pa.array(grown_by, pa.string())
    unseen = pc.invert(pc.is_in(listed["split"], pa.array(OF_MODELS)))
    unseen = pc.and_(unseen, pc.invert(pc.is_in(listed["image_id"], seen)))
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
    if decided is None:
        return Labelled(rows, counts)
    candidates = scored.filter(
        pc.invert(
            pc.or_(
                pc.is_in(scored["uri"], listed["uri"].filter(pc.invert(unseen))),
                pc.is_in(scored["image_id"], seen),
            )
        )
    )
    return _with_decisions(Labelled(rows, counts), candidates, decided)


def _with_decisions(labelled: Labelled, candidates: pa.Table, decided: pa.Table) -> Labelled:
    """Labelled rows whose labels are those of people, where `candidates` were decided."""
    of_image = dict(zip(_shown(decided), decided["decision"].to_pylist(), strict=True))
    said = pa.array([of_image.get(key) for key in _shown(candidates)], pa.string())
    known = candidates.append_column("said", said).filter(pc.is_valid(said))
    own = pc.equal(known["said"], DEFECT).cast(pa.int8())
    known = known.append_column("own", own)
    listed = labelled.rows.select(["image_id", *_ADDED])
    known = known.join(listed, "image_id", join_type="left outer")
    is_sure = pc.not_equal(known["said"], UNSURE)
    sure = known.filter(is_sure)
    # The mask of a defect that a person sees too stays; there is none of one that is no defect.
    mask = pc.if_else(pc.equal(sure["own"], 1), sure["mask_uri"], None)
    replaced = sure.drop_columns(["label", "mask_uri"])
    replaced = replaced.append_column("label", sure["own"]).append_column("mask_uri", mask)
    rows = labelled.rows.filter(pc.invert(pc.is_in(labelled.rows["image_id"], known["image_id"])))
    replaced = replaced.select(rows.column_names).cast(rows.schema)
    other = pc.fill_null(pc.not_equal(sure["own"], sure["label"]), False)
    good = pc.fill_null(pc.invert(sure["is_anomalous"]), False)
    counts = labelled.joined._replace(
        decided=len(sure),
        contradicted=pc.sum(other).as_py() or 0,
        called_good=pc.sum(good).as_py() or 0,
        unsure=len(known) - len(sure),
    )
    return Labelled(pa.concat_tables([rows, replaced]), counts)


def _shown(rows: pa.Table) -> list[tuple[str, str]]:
    """What decisions are of: an address, and the bytes there; the version if they were not read."""
    content = pc.coalesce(rows["content_sha256"], rows["image_id"])
    return list(zip(rows["uri"].to_pylist(), content.to_pylist(), strict=True))


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
