"""What a check looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ops.detectors.model_folder import ModelCard
from ops.results.anomaly_map import Scale
from ops.storage.paths import Out

#: Values that are named of each broken rule; the others are counted.
SHOWN = 5


@dataclass
class Violation:
    """A rule that does not hold: what was found instead, and how to mend it."""

    rule: str
    remedy: str
    count: int = 0
    values: list[str] = field(default_factory=list)
    """The first few of them."""


@dataclass
class Findings:
    """What a check found, and how much it looked at."""

    images: int = 0
    maps_named: int = 0
    maps_read: int = 0
    violations: dict[str, Violation] = field(default_factory=dict)
    """By rule."""

    def add(self, rule: str, values: Sequence[str], remedy: str, count: int | None = None) -> None:
        """Note values that break a rule; `count` if only some of them are named."""
        if not values:
            return
        violation = self.violations.setdefault(rule, Violation(rule, remedy))
        violation.count += len(values) if count is None else count
        violation.values += values[: SHOWN - len(violation.values)]

    def expect(self, rule: str, found: object, expected: object, remedy: str) -> None:
        """Note a value that is not the expected one."""
        if found != expected:
            self.add(rule, [f"{found!r}, not {expected!r}"], remedy)


@dataclass(frozen=True)
class RunUnderCheck:
    """A finished run, and what else is at hand to check it against."""

    out: Out
    run_id: str
    record: Mapping[str, Any]
    inventory: str
    """Where the inventory lies that was scored."""
    card: ModelCard | None
    """The model's, if at hand."""

    @property
    def table(self) -> str:
        """Where its table must lie."""
        return self.out.table(self.run_id[:10], self.run_id)

    @property
    def again(self) -> str:
        """How to get its files anew."""
        return (
            f"restore it from a copy; or remove {self.out.run(self.run_id)} and start the run's "
            f"jobs.score command again with --night {self.run_id[:10]}"
        )

    @property
    def scale(self) -> Scale | None:
        """The one scale of its maps, if it is known."""
        if self.card:
            return self.card.map_scale
        known = self.record.get("map_scale")
        return Scale(**known) if known else None
