"""What is wrong with the decisions of a file, gathered so that one message says it all."""

from __future__ import annotations

from typing import NamedTuple

from ops.errors import UserError

_EXAMPLES = 5
_LONGEST = 60


class Rule(NamedTuple):
    """A rule that decisions of a file can break."""

    broken: str
    """What is wrong with them, in words that follow "decisions"."""
    remedy: str


class Refusals:
    """The decisions of a file that are not taken, by the rule that they break."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._broken: dict[Rule, list[str]] = {}

    def add(self, rule: Rule, where: str, value: object = None) -> None:
        """Add a decision: where in the file it stands, and the value that breaks the rule."""
        example = where if value is None else f"{where} ({shortened(value)})"
        self._broken.setdefault(rule, []).append(example)

    def check(self) -> None:
        """Raise UserError if there is any."""
        if self._broken:
            told = ". ".join(_told(*each) for each in self._broken.items())
            raise UserError(f"{self.file} is not taken, and nothing is stored. {told}")


def _told(rule: Rule, examples: list[str]) -> str:
    shown = ", ".join(examples[:_EXAMPLES])
    more = f" and {len(examples) - _EXAMPLES:,} more" if len(examples) > _EXAMPLES else ""
    return f"Decisions {rule.broken} ({len(examples):,}): {shown}{more}; {rule.remedy}"


def shortened(value: object) -> str:
    """A value of a file as a message shows it."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
