"""The score table: its schema, whose field metadata describes the columns, and its rules."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ops.failure import STATUSES
from ops.results.table_rules import Rule, broken, one_of, required
from ops.storage.parquet import TEXTS, column

_STATUS = "; ".join(f"{status}: {meaning}" for status, meaning in STATUSES.items())

SCHEMA = pa.schema(
    [
        column("image_id", pa.string(), "128-bit hash of uri and version, in hex", False),
        column("uri", pa.string(), "full address; a member of an archive follows #", False),
        column("product", pa.string(), "what the picture shows; selects the detector"),
        column("part", pa.string(), "which part of the product; null if its path names none"),
        column("view", pa.string(), "from where the part is seen; null if its path names none"),
        column("fields", TEXTS, "other fields of the path pattern by name; else null"),
        column("content_sha256", pa.string(), "SHA-256 of the file's bytes; null if not read"),
        column("width", pa.int32(), "pixels of the upright picture"),
        column("height", pa.int32(), "pixels of the upright picture"),
        column("bit_depth", pa.int8(), "bits per sample that values are scaled by"),
        column("status", pa.string(), _STATUS, False),
        column(
            "reason",
            pa.string(),
            "why there is no score; of ok rows, what was left out of the file",
        ),
        column("score", pa.float64(), "raw, larger is more anomalous; null if status is not ok"),
        column("p_value", pa.float64(), "share of good images that score as high; null if unknown"),
        column("is_anomalous", pa.bool_(), "score above the model's threshold; null if unknown"),
        column("peak_x", pa.int32(), "where the map is largest, in pixels of the picture"),
        column("peak_y", pa.int32(), "where the map is largest, in pixels of the picture"),
        column("map_uri", pa.string(), "16-bit PNG of the map; null if none was written"),
        column("model_id", pa.string(), "hash of the model's content", False),
        column("run_id", pa.string(), "the run that wrote this row", False),
        column("run_number", pa.int64(), "of two rows of an image, the higher is newer", False),
        column(
            "scored_at",
            pa.timestamp("ms", "UTC"),
            "when the image was scored, by the clock of the machine",
            False,
        ),
    ],
    metadata={"nightloupe": "scores 4"},
)


def _ok(rows: pa.Table) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(rows["status"], "ok"), False)


def _failed(rows: pa.Table) -> pa.ChunkedArray:
    return pc.invert(_ok(rows))


def _required_if_ok(name: str) -> Rule:
    return Rule(
        f"ok rows without {name}",
        (name,),
        lambda rows: pc.and_(_ok(rows), pc.is_null(rows[name])),
    )


def _null_if_failed(name: str) -> Rule:
    return Rule(
        f"failed rows with {name}",
        ("status", name),
        lambda rows: pc.and_(_failed(rows), pc.is_valid(rows[name])),
    )


def _outside(rows: pa.Table, at: str, size: str) -> pa.ChunkedArray:
    """Whether a coordinate lies outside of [0, size)."""
    return pc.or_kleene(pc.less(rows[at], 0), pc.greater_equal(rows[at], rows[size]))


#: The rules, for tables with the columns of the schema.
RULES = (
    *required(SCHEMA),
    one_of("status", STATUSES),
    Rule(
        "ok rows without a finite score",
        ("score",),
        lambda rows: pc.and_(
            _ok(rows), pc.invert(pc.fill_null(pc.is_finite(rows["score"]), False))
        ),
    ),
    *map(_required_if_ok, ("product", "content_sha256", "width", "height", "bit_depth")),
    *map(_required_if_ok, ("peak_x", "peak_y")),
    *map(_null_if_failed, ("score", "p_value", "is_anomalous", "map_uri")),
    Rule(
        "failed rows without reason",
        ("status",),
        lambda rows: pc.and_(_failed(rows), pc.is_null(rows["reason"])),
    ),
    Rule(
        "rows whose p_value is not in (0, 1]",
        ("p_value",),
        lambda rows: pc.invert(
            pc.and_(pc.greater(rows["p_value"], 0), pc.less_equal(rows["p_value"], 1))
        ),
    ),
    Rule(
        "rows whose peak lies outside of the picture",
        ("peak_x", "peak_y", "width", "height"),
        lambda rows: pc.or_kleene(
            _outside(rows, "peak_x", "width"), _outside(rows, "peak_y", "height")
        ),
    ),
)


def has_columns(schema: pa.Schema) -> bool:
    """Whether names, types and order of the columns are those of the score schema."""
    return bool(schema.names == SCHEMA.names and schema.types == SCHEMA.types)


def violations(table: pa.Table) -> list[str]:
    """The broken rules of a score table, in words; empty if it is valid."""
    if not has_columns(table.schema):
        return [f"the columns are {table.schema}, not those of the score schema"]
    return broken(table, RULES)
