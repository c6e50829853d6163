"""What is wrong with the decisions of a file, gathered so that one message says it all."""

from __future__ import annotations

import reprlib
from collections import Counter
from typing import NamedTuple

from ops.errors import UserError

_EXAMPLES = 5
_LONGEST = 60
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _LONGEST


class Rule(NamedTuple):
    """A rule that decisions of a file can break."""

    broken: str
    """What is wrong with them, in words that follow "decisions"."""
    remedy: str


class Refusals:
    """The decisions of a file that are not taken, by the rule that they break."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._counts = Counter[Rule]()
        self._examples: dict[Rule, list[str]] = {}

    def add(self, rule: Rule, where: str, value: object = None) -> None:
        """Add a decision: where in the file it stands, and the value that breaks the rule."""
        self._counts[rule] += 1
        if self._counts[rule] <= _EXAMPLES:
            example = where if value is None else f"{where} ({shortened(value)})"
            self._examples.setdefault(rule, []).append(example)

    def check(self) -> None:
        """Raise UserError if there is any."""
        if self._counts:
            told = ". ".join(map(self._told, self._counts))
            raise UserError(f"{self.file} is not taken, and nothing is stored. {told}")

    def _told(self, rule: Rule) -> str:
        number, shown = self._counts[rule], ", ".join(self._examples[rule])
        more = f" and {number - _EXAMPLES:,} more" if number > _EXAMPLES else ""
        return f"Decisions {rule.broken} ({number:,}): {shown}{more}; {rule.remedy}"


def shortened(value: object) -> str:
    """A value of a file as a message shows it, however long or nested it is."""
    text = _SHORT.repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
