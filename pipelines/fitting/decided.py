"""What people decided of images, for a fit: defects are left out, false alarms make a bank grow.

False alarms go to the bank and never to the calibration. It holds for images that are drawn like
those it rests on, which a hash holds out whatever their scores; false alarms are drawn by their
scores. Among held-out images they would raise thresholds: fewer images than promised would be
called anomalous, and more defects missed. A false alarm that a hash holds out stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ops.archives.fetch import FetchSettings
from ops.archives.hash_images import HashImages
from ops.archives.inventory import SCHEMA, Inventory
from ops.archives.layouts import composed
from ops.archives.views import detector_names
from ops.detectors.model_folder import Model
from ops.results.decision_table import DEFECT, FALSE_ALARM
from ops.storage.paths import Out
from pipelines.fitting import calibration_images
from pipelines.fitting.request import FitRequest, NothingToFit, Split, split, to_fit
from pipelines.scoring.read_stage import CARRIED
from pipelines.tables import current_scores, decisions

_BYTES = ("uri", "content_sha256")
_ROWS = pa.schema([SCHEMA.field(name) for name in CARRIED])
#: Parts and views of images, which the table of decisions does not have.
_SHOWN = """
    SELECT decided.image_id, decided.uri, decided.product, any_value(scores.part) AS part,
           any_value(scores.view) AS view, decided.content_sha256
    FROM decided
    LEFT JOIN read_parquet(getvariable('tables'), hive_partitioning = false) AS scores
        USING (image_id)
    GROUP BY ALL ORDER BY decided.product, decided.uri
"""


@dataclass(frozen=True)
class Decided:
    """Images that people decided to be defects, and to be false alarms."""

    defects: pa.Table
    """Columns of the table of decisions."""
    false_alarms: pa.Table
    """Columns `image_id`, `uri`, `product`, `part`, `view` and `content_sha256`."""
    fetch: FetchSettings

    @classmethod
    def read(cls, out: Out, fetch: FetchSettings) -> Decided:
        """The decisions in an output folder. Raises UserError if there is none."""
        rows = decisions.of_images(out)
        alarms = rows.filter(pc.equal(rows["decision"], FALSE_ALARM))

        def with_views(database: Any, _: Callable[[], None]) -> pa.Table:
            database.register("decided", alarms)
            return database.sql(_SHOWN).to_arrow_table()

        shown = current_scores.read_consistently(out, with_views)
        return cls(rows.filter(pc.equal(rows["decision"], DEFECT)), shown, fetch)

    def is_defect(self, rows: pa.Table) -> pa.Array:
        """Which rows of an inventory are defects; bytes are read of those of another version."""
        same = pc.is_in(rows["image_id"], self.defects["image_id"])
        moved = pc.and_not(pc.is_in(rows["uri"], self.defects["uri"]), same)
        hashed = HashImages(self.fetch)(rows.filter(moved))
        shown = {*zip(*(self.defects[name].to_pylist() for name in _BYTES), strict=True)}
        found = [
            image_id
            for image_id, *content in zip(
                *(hashed[name].to_pylist() for name in ("image_id", *_BYTES)), strict=True
            )
            if tuple(content) in shown and content[1]
        ]
        return pc.or_(same, pc.is_in(rows["image_id"], pa.array(found, pa.string())))

    def unchanged(self, alarms: pa.Table) -> pa.Table:
        """The rows to fit on of false alarms whose bytes are still those that were shown."""
        rows = alarms.drop_columns("content_sha256")
        for name in (name for name in CARRIED if name not in rows.schema.names):
            # Members of archives are found by name, which holds also if the archive was rewritten.
            rows = rows.append_column(
                _ROWS.field(name), pa.nulls(len(rows), _ROWS.field(name).type)
            )
        rows = rows.select(list(CARRIED)).cast(_ROWS)
        now = HashImages(self.fetch)(rows)["content_sha256"]
        return rows.filter(pc.fill_null(pc.equal(now, alarms["content_sha256"]), False))


class Chosen(NamedTuple):
    """The images of a fit, what the card of the model says of decisions, and that in words."""

    split: Split
    record: dict[str, Any]
    sentences: list[str]


def choose(
    inventory: Inventory | None,
    request: FitRequest,
    earlier: Model | None = None,
    decided: Decided | None = None,
) -> Chosen:
    """The images of a fit, or of growing an earlier model, in view of what people decided.

    Without an inventory a model is grown by false alarms alone. Raises NothingToFit.
    """
    counts: dict[str, int] = {}
    before = calibration_images.of_model(earlier) if earlier else None
    if decided is None:
        chosen = _split(inventory, request)
        record: dict[str, Any] = {}
    else:
        counting = _Counting(decided, counts)
        chosen = _split(inventory, request, counting.of_inventory)
        record = {"decisions": counts}
        if before is not None:
            before = before.filter(pc.invert(counting.of_calibration(before)))
        if earlier:
            added = _to_add(decided, chosen, before, earlier, request, counts)
            chosen = _with_rows(chosen, added, request)
            known = earlier.card.fit.get("false_alarms", [])
            record["false_alarms"] = [*known, *added["image_id"].to_pylist()]
    if not len(chosen.fit):
        raise NothingToFit(
            "there is no good image to fit on: none is listed, or people decided that all are "
            "defects, and no false alarm is new to the model; name images with --inventory or "
            "--archive"
        )
    if earlier:
        chosen = calibration_images.with_earlier(chosen, earlier, before)
    return Chosen(chosen, record, _sentences(counts))


def _split(
    inventory: Inventory | None,
    request: FitRequest,
    is_defect: Callable[[pa.Table], pa.Array] | None = None,
) -> Split:
    if inventory is not None:
        return split(inventory, request, is_defect)
    return Split(to_fit(_ROWS.empty_table(), request), _ROWS.empty_table())


class _Counting(NamedTuple):
    """Finds the defects among images, and counts them."""

    decided: Decided
    counts: dict[str, int]

    def of_inventory(self, rows: pa.Table) -> pa.Array:
        return self._among(rows, "defects")

    def of_calibration(self, rows: pa.Table) -> pa.Array:
        return self._among(rows, "defects_held_out_before")

    def _among(self, rows: pa.Table, name: str) -> pa.Array:
        wrong = self.decided.is_defect(rows)
        self.counts[name] = pc.sum(wrong).as_py() or 0
        return wrong


def _to_add(
    decided: Decided,
    chosen: Split,
    before: pa.Table | None,
    earlier: Model,
    request: FitRequest,
    counts: dict[str, int],
) -> pa.Table:
    """The rows of false alarms that are new to a model and its fit, and calibrate neither."""
    alarms = decided.false_alarms
    products = pa.array(map(composed, request.select.products), pa.string())
    if len(products):
        alarms = alarms.filter(pc.is_in(alarms["product"], products))
    detectors = detector_names(alarms, request.views)
    alarms = alarms.filter(pc.is_in(detectors, pa.array(list(earlier.card.products), pa.string())))
    held_out = pa.concat_tables([chosen.held_out, *([] if before is None else [before])])
    known = pa.array(earlier.card.fit.get("false_alarms", []), pa.string())
    again = pc.or_(pc.is_in(alarms["image_id"], known), pc.is_in(alarms["uri"], chosen.fit["uri"]))
    again = pc.or_(again, calibration_images.is_among(alarms, held_out))
    fresh = alarms.filter(pc.invert(again))
    rows = decided.unchanged(fresh)
    counts["false_alarms_added"] = len(rows)
    counts["false_alarms_known"] = len(alarms) - len(fresh)
    counts["false_alarms_changed"] = len(fresh) - len(rows)
    return rows


def _with_rows(chosen: Split, added: pa.Table, request: FitRequest) -> Split:
    """A split that also fits on other rows."""
    plain = calibration_images.with_products(chosen.fit, request.views).select(list(CARRIED))
    rows = pa.concat_tables([plain.cast(_ROWS), added])
    order = [("product", "ascending"), ("uri", "ascending")]
    return Split(to_fit(rows.sort_by(order), request), chosen.held_out)


def _sentences(counts: Mapping[str, int]) -> list[str]:
    words = {
        "defects": "images that people decided to be defects are left out",
        "defects_held_out_before": "such images calibrated the model before, and no longer do",
        "false_alarms_added": "false alarms are added as good images",
        "false_alarms_known": "false alarms are known already: to the model, as images of this "
        "fit, or as parts that calibrate",
        "false_alarms_changed": "false alarms are left out, as their files cannot be read or have "
        "changed",
    }
    return [f"decisions: {n:,} {words[name]}" for name, n in counts.items() if n]
