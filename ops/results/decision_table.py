"""The table of decisions: what people said of images and of regions of their maps."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ops.errors import SettingError
from ops.results.table_rules import Rule, broken, one_of, required
from ops.storage.parquet import column

DEFECT, FALSE_ALARM, UNSURE, UNDECIDED = "defect", "false_alarm", "unsure", "undecided"
#: What a person can decide; `undecided` takes an earlier decision back.
DECISIONS = {
    DEFECT: "the part has a defect there",
    FALSE_ALARM: "the part is good there",
    UNSURE: "a person looked and could not tell",
    UNDECIDED: "an earlier decision is taken back",
}
#: Characters of a name and of a comment.
LONGEST_NAME, LONGEST_COMMENT = 100, 10_000
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


#: The rules, for tables with the columns of the schema.
RULES = (
    *required(SCHEMA),
    one_of("decision", DECISIONS),
    one_of("source", SOURCES),
    Rule("rows whose region is below 1", ("region",), lambda rows: pc.less(rows["region"], 1)),
)


#: What a name of a person is, in words.
NAME_RULE = (
    f"at most {LONGEST_NAME} characters that can be printed, so none that turns the direction of "
    "writing"
)


def is_name(who: str) -> bool:
    """Whether a text can be the name of a person who decides; an empty one stands for nobody."""
    return len(who) <= LONGEST_NAME and who.isprintable()


def check_name(who: str) -> None:
    """Check the name of a person who decides. Raises SettingError."""
    if not is_name(who):
        raise SettingError(f"who {who[:LONGEST_NAME]!r} must have {NAME_RULE}")


def violations(table: pa.Table) -> list[str]:
    """The broken rules of a table of decisions, in words; empty if it is valid."""
    if table.schema.names != SCHEMA.names or table.schema.types != SCHEMA.types:
        columns = ", ".join(f"{each.name} {each.type}" for each in table.schema)
        return [f"the columns are {columns}, not those of the schema of decisions"]
    return broken(table, RULES)
