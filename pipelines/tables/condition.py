"""Conditions that people write: expressions over columns of one row, and nothing else of SQL.

DuckDB's own parser makes the tree, and every node of it must be of a kind that is known to be
harmless: no subquery, no table, no function that reads files, settings or the environment.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any, NoReturn

import duckdb

from ops.errors import SettingError

#: Errors of DuckDB at a condition whose types do not fit, or whose values do not.
ERRORS = (
    *(duckdb.BinderException, duckdb.ConversionException, duckdb.ParserException),
    *(duckdb.OutOfRangeException, duckdb.NotImplementedException, duckdb.InvalidInputException),
)
#: Kinds of nodes of an expression.
_NODES = frozenset(
    {"BETWEEN", "CASE", "CAST", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION"}
    | {"OPERATOR", "TYPE"}
)
_OPERATORS = "+ - * / // % ** ^ & | || ~ << >> ~~ !~~ ~~* !~~* ~~~ ^@"
_TEXT = """
    concat contains ends_with ilike_escape instr left length like_escape lower ltrim nfc_normalize
    not_ilike_escape not_like_escape prefix regexp_extract regexp_full_match regexp_matches replace
    reverse right rtrim split_part starts_with strip_accents strlen strpos substr substring suffix
    trim upper url_decode
"""
_NUMBERS = """
    abs add ceil ceiling divide exp floor greatest isfinite isinf isnan least ln log log10 log2 mod
    multiply pow power round sign sqrt subtract trunc
"""
_TIMES = """
    age current_date date_diff date_part date_trunc datediff datepart datetrunc day dayname
    dayofweek dayofyear epoch epoch_ms get_current_timestamp hour isodow last_day make_date
    make_timestamp minute month monthname now quarter second strftime strptime timezone to_days
    to_hours to_minutes to_months to_seconds to_timestamp to_weeks to_years today
    transaction_timestamp try_strptime week weekday year
"""
FUNCTIONS = frozenset(f"{_OPERATORS} {_TEXT} {_NUMBERS} {_TIMES}".split())
_TYPE_NAMES = """
    BIGINT BOOLEAN DATE DECIMAL DOUBLE FLOAT HUGEINT INTEGER INTERVAL REAL SMALLINT TIME TIMESTAMP
    TIMESTAMPTZ TIMESTAMP_MS TINYINT UBIGINT UINTEGER USMALLINT UTINYINT VARCHAR
"""
_TYPES = frozenset(_TYPE_NAMES.split()) | {"TIMESTAMP WITH TIME ZONE"}
#: Longer conditions are lists of ids, which belong into an inventory.
_LONGEST = 100_000
#: Operators within each other; a limit of our own, as that of Python's parsers differs by version.
_DEEPEST = 100


def check(
    database: duckdb.DuckDBPyConnection, condition: str, columns: Collection[str]
) -> set[str]:
    """Raise SettingError unless a text is one expression over columns, such as `width > 1000`.

    A text that passes can stand in a query between parentheses, each on a line of its own. Returns
    the names of the columns in it, in lower case.
    """
    if len(condition) > _LONGEST:
        raise SettingError(
            f"a condition has {len(condition)} characters; at most {_LONGEST} are allowed"
        )
    node = _parsed(database, condition)
    plain = _parsed(database, "true")
    expressions = node.pop("select_list", [])
    plain.pop("select_list")
    if _without_places(node) != _without_places(plain) or len(expressions) != 1:
        _refuse(condition, "it is more than one expression")
    known = {name.lower() for name in columns}
    read = set[str]()
    for part, depth in _objects(expressions[0]):
        if depth > _DEEPEST:
            _refuse(condition, f"it is nested more than {_DEEPEST} times")
        _check_node(condition, part, known)
        if part.get("class") == "COLUMN_REF":
            read.add(".".join(part["column_names"]).lower())
    return read


def _parsed(database: duckdb.DuckDBPyConnection, condition: str) -> dict[str, Any]:
    """The tree of `SELECT condition`."""
    (answer,) = database.execute(
        "SELECT json_serialize_sql($sql)", {"sql": f"SELECT\n{condition}\n"}
    ).fetchall()[0]
    try:
        tree = json.loads(answer)
    except RecursionError:
        _refuse(condition, "it is nested too deeply")
    if tree["error"]:
        _refuse(condition, str(tree["error_message"]))
    if len(tree["statements"]) != 1 or tree["statements"][0]["named_param_map"]:
        _refuse(condition, "it is more than one expression")
    return dict(tree["statements"][0]["node"])


def _without_places(node: Any) -> Any:
    """A tree without the positions of its parts in the text."""
    if isinstance(node, dict):
        return {
            name: _without_places(value)
            for name, value in node.items()
            if not name.startswith("query_location")
        }
    return [_without_places(value) for value in node] if isinstance(node, list) else node


def _objects(node: Any) -> Iterator[tuple[dict[str, Any], int]]:
    """All objects of a tree of JSON, each with the number of objects around it."""
    waiting = [(node, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict):
            yield value, depth
            waiting.extend((child, depth + 1) for child in value.values())
        elif isinstance(value, list):
            waiting.extend((child, depth) for child in value)


def _check_node(condition: str, node: dict[str, Any], columns: set[str]) -> None:
    kind = node.get("class")
    if kind is None:
        return
    if kind not in _NODES:
        _refuse(condition, f"{str(kind).lower()} is not allowed in it")
    if node.get("alias"):
        _refuse(condition, f"it gives the name {node['alias']!r} to a value")
    if kind == "COLUMN_REF":
        name = ".".join(node["column_names"])
        if name.lower() not in columns:
            _refuse(condition, f"{name!r} is no column; columns: {', '.join(sorted(columns))}")
    if kind == "TYPE" and node["type_name"].upper() not in _TYPES:
        _refuse(condition, f"type {node['type_name']} is not allowed in it")
    if kind == "FUNCTION":
        name = node["function_name"]
        if node["schema"] or node["catalog"] or name not in FUNCTIONS:
            _refuse(condition, f"function {name} is not allowed in it")


def refusal(condition: str, why: object) -> SettingError:
    """The error of a condition that cannot be used; of `why` the first line counts."""
    reason = str(why).partition("\n")[0].rstrip(".")
    return SettingError(
        f"where {condition!r} is not a condition over the score table: {reason}. Write an "
        "expression over its columns, such as width > 1000 AND product LIKE 'nut%'"
    )


def _refuse(condition: str, why: str) -> NoReturn:
    raise refusal(condition, why)
