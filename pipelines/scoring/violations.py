"""The input and the findings of a check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ops.detectors.model_card import ModelCard
from ops.results.anomaly_map import Scale
from ops.storage.paths import Out

#: Examples that are kept of each broken rule; the others are counted.
MAX_EXAMPLES = 5


@dataclass
class Violation:
    """A rule that does not hold, with examples, and how to mend it."""

    rule: str
    remedy: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    """The first `MAX_EXAMPLES` of them."""


@dataclass
class Findings:
    """The broken rules that a check found, and how much it read."""

    images: int = 0
    maps_named: int = 0
    maps_read: int = 0
    files: Counter[str] = field(default_factory=Counter)
    """Images by what became of their files: unchanged, changed, gone, unavailable, unknown."""
    hashed: int = 0
    """Images whose bytes were compared with those that were scored."""
    decisions: int = 0
    """Decisions of people in the output folder."""
    decisions_unknown: int = 0
    """Those of runs without a record, or of images that the run has no row of."""
    violations: dict[str, Violation] = field(default_factory=dict)
    """By rule."""

    def add(
        self, rule: str, examples: Sequence[str], remedy: str, count: int | None = None
    ) -> None:
        """Add values that break a rule; `count` if `examples` are only some of them."""
        if not examples:
            return
        violation = self.violations.setdefault(rule, Violation(rule, remedy))
        violation.count += len(examples) if count is None else count
        violation.examples += examples[: MAX_EXAMPLES - len(violation.examples)]

    def expect(self, rule: str, actual: object, expected: object, remedy: str) -> None:
        """Add a violation if a value is not the expected one."""
        if actual != expected:
            self.add(rule, [f"{actual!r}, not {expected!r}"], remedy)


@dataclass(frozen=True)
class RunUnderCheck:
    """A finished run, and what it is checked against."""

    out: Out
    run_id: str
    record: Mapping[str, Any]
    inventory: str
    """The location of the inventory that was scored."""
    card: ModelCard | None
    """The model's card, if the model is available."""

    @property
    def table(self) -> str:
        """The location of its table."""
        return self.out.table(self.run_id[:10], self.run_id)

    @property
    def remedy(self) -> str:
        """How to recreate its files."""
        return (
            f"restore it from a copy; or remove {self.out.run(self.run_id)} and start the run's "
            f"jobs.score command again with --night {self.run_id[:10]}"
        )

    @property
    def scale(self) -> Scale | None:
        """The scale of its maps, if the model or the record has it."""
        if self.card:
            return self.card.map_scale
        recorded = self.record.get("map_scale")
        return Scale(**recorded) if recorded else None
