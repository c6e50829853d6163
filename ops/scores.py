"""The score table: its schema, published with meanings, and the check of a table against it."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ops.failure import STATUSES


def _field(name: str, kind: pa.DataType, meaning: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable, metadata={"meaning": meaning})


_STATUS = "; ".join(f"{status}: {meaning}" for status, meaning in STATUSES.items())

SCHEMA = pa.schema(
    [
        _field("image_id", pa.string(), "128-bit hash of uri and version, in hex", False),
        _field("uri", pa.string(), "full address; a member of an archive stands behind #", False),
        _field("product", pa.string(), "what the picture shows; chooses the detector"),
        _field("content_sha256", pa.string(), "hash of the file's bytes; null if never read"),
        _field("width", pa.int32(), "pixels of the upright picture"),
        _field("height", pa.int32(), "pixels of the upright picture"),
        _field("bit_depth", pa.int8(), "bits per sample that the values were scaled by"),
        _field("status", pa.string(), _STATUS, False),
        _field("reason", pa.string(), "a sentence, if status is not ok"),
        _field("score", pa.float64(), "raw, larger is more anomalous; null if status is not ok"),
        _field("p_value", pa.float64(), "share of good images that score as high; null: unknown"),
        _field("is_anomalous", pa.bool_(), "score above the model's threshold; null: unknown"),
        _field("peak_x", pa.int32(), "where the map is largest, in pixels of the picture"),
        _field("peak_y", pa.int32(), "where the map is largest, in pixels of the picture"),
        _field("map_uri", pa.string(), "16-bit PNG of the map; null if none was asked for"),
        _field("model_id", pa.string(), "hash of the model's content", False),
        _field("run_id", pa.string(), "the run that wrote this row", False),
        _field("scored_at", pa.timestamp("ms", "UTC"), "when", False),
    ],
    metadata={"nightloupe": "scores 1"},
)


def violations(table: pa.Table) -> list[str]:
    """What in a score table breaks the schema's rules; empty if nothing does."""
    if table.schema.names != SCHEMA.names or table.schema.types != SCHEMA.types:
        return [f"columns are {table.schema}, not those of the score schema"]
    found = [
        f"{name} is null in {table[name].null_count} rows"
        for name in SCHEMA.names
        if not SCHEMA.field(name).nullable and table[name].null_count
    ]
    ok = pc.equal(table["status"], "ok")
    unknown = set(pc.unique(table["status"]).to_pylist()) - set(STATUSES)
    rules = {
        "ok rows without a finite score": pc.and_(
            ok, pc.invert(pc.fill_null(pc.is_finite(table["score"]), False))
        ),
        "failed rows with a score": pc.and_(pc.invert(ok), pc.is_valid(table["score"])),
        "failed rows without a reason": pc.and_(pc.invert(ok), pc.is_null(table["reason"])),
    }
    counts = {rule: pc.sum(broken).as_py() or 0 for rule, broken in rules.items()}
    found += [f"{count} {rule}" for rule, count in counts.items() if count]
    return found + ([f"unknown statuses {sorted(map(str, unknown))}"] if unknown else [])
