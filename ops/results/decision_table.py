"""The table of decisions: what people said of images and of regions of their maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ops.storage.parquet import column

DEFECT, FALSE_ALARM, UNSURE, UNDECIDED = "defect", "false_alarm", "unsure", "undecided"
#: What a person can decide; `undecided` takes an earlier decision back.
DECISIONS = {
    DEFECT: "the part has a defect there",
    FALSE_ALARM: "the part is good there",
    UNSURE: "a person looked and could not tell",
    UNDECIDED: "an earlier decision is taken back",
}
#: Where decisions come from.
SOURCES = ("page", "csv", "coco", "label_studio", "report")

_DECISION = "; ".join(f"{name}: {meaning}" for name, meaning in DECISIONS.items())

SCHEMA = pa.schema(
    [
        column("image_id", pa.string(), "the image, as in the score table", False),
        column("uri", pa.string(), "address of the image, as in the score table", False),
        column("product", pa.string(), "as in the score table"),
        column("content_sha256", pa.string(), "SHA-256 of the file's bytes, as in the score table"),
        column("region", pa.int32(), "number of the region; null if it is of the whole image"),
        column("decision", pa.string(), _DECISION, False),
        column("who", pa.string(), "who decided; empty if unknown", False),
        column("decided_at", pa.timestamp("us", "UTC"), "of two decisions, the later wins", False),
        column("source", pa.string(), f"one of {', '.join(SOURCES)}", False),
        column("comment", pa.string(), "what the person wrote"),
        column("model_id", pa.string(), "the model whose score or regions were shown", False),
        column("run_id", pa.string(), "the run that wrote the score that was shown", False),
    ],
    metadata={"nightloupe": "decisions 1"},
)


class Rule(NamedTuple):
    """A condition that no row of a table of decisions may meet."""

    description: str
    """The rows that break the rule, in words that follow a count."""
    breaks: Callable[[pa.Table], pa.ChunkedArray]
    """Which rows of a table break the rule: booleans, where null means no."""


def _required(name: str) -> Rule:
    return Rule(f"rows whose {name} is null", lambda rows: pc.is_null(rows[name]))


def _one_of(name: str, known: pa.Array) -> Rule:
    def breaks(rows: pa.Table) -> pa.ChunkedArray:
        return pc.and_(pc.is_valid(rows[name]), pc.invert(pc.is_in(rows[name], known)))

    return Rule(f"rows of an unknown {name}", breaks)


#: The rules, for tables with the columns of the schema.
RULES = (
    *(_required(field.name) for field in SCHEMA if not field.nullable),
    _one_of("decision", pa.array(list(DECISIONS))),
    _one_of("source", pa.array(SOURCES)),
    Rule("rows whose region is below 1", lambda rows: pc.less(rows["region"], 1)),
)


def violations(table: pa.Table) -> list[str]:
    """The broken rules of a table of decisions, in words; empty if it is valid."""
    if table.schema.names != SCHEMA.names or table.schema.types != SCHEMA.types:
        return [f"the columns are {table.schema}, not those of the schema of decisions"]
    counts = {rule.description: pc.sum(rule.breaks(table)).as_py() or 0 for rule in RULES}
    return [f"{count} {description}" for description, count in counts.items() if count]
