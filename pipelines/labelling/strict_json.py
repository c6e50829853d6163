"""JSON from outside: one meaning for each text, and a sentence for what has none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

from ops.errors import UserError
from pipelines.labelling.refusals import shortened


def parse(file: str, text: str) -> Any:
    """The content of a JSON text. Raises UserError if it is none, or names a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise UserError(f"{file} is nested too deeply for a file of decisions") from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}; export it again") from None


def objects(file: str, value: object, what: str) -> list[dict[str, Any]]:
    """A list of JSON objects. Raises UserError if a value is none."""
    if not isinstance(value, list):
        raise UserError(f"{file}: {what} is {shortened(value)}, not a list; export it again")
    for place, each in enumerate(value, 1):
        if not isinstance(each, dict):
            raise UserError(
                f"{file}: entry {place} of {what} is {shortened(each)}, not an object; export it "
                "again"
            )
    return value


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {shortened(name)} twice")
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
