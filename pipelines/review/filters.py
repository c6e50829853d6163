"""Which parts of a list are shown: values of filters as a condition in SQL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ops.errors import SettingError
from ops.results.decision_table import DECISIONS, UNDECIDED
from pipelines.tables.path_fields import PREFIX

#: Verdict -> its condition.
VERDICTS = {
    "anomalous": "is_anomalous",
    "normal": "NOT is_anomalous",
    "none": "is_anomalous IS NULL",
}
#: Whether and how parts are decided -> condition.
_DECIDED = {
    "yes": "decision IS NOT NULL",
    "no": "decision IS NULL",
    **{name: f"decision = '{name}'" for name in DECISIONS if name != UNDECIDED},
}
#: Whether dismissed alarms are shown.
_SHOWN = ("shown",)
_NUMBERS = {"most_p": "p_value <= $most_p", "least_score": "score >= $least_score"}
_TEXTS = {
    "night": "left(run_id, 10) = $night",
    "product": "product = $product",
    "part": "part = $part",
    "view": "view = $view",
    "status": "status = $status",
    "text": "contains(lower(uri), lower($text))",
}


@dataclass(frozen=True)
class Filter:
    """Parts that meet all conditions; an empty one is met by all but dismissed alarms."""

    night: str = ""
    product: str | None = None
    part: str = ""
    view: str = ""
    status: str = ""
    verdict: str = ""
    decided: str = ""
    most_p: str = ""
    least_score: str = ""
    text: str = ""
    false_alarms: str = ""
    """`shown` for alarms too that were dismissed before the list was read: anomalous parts that a
    person called false alarms under this model. A filter of decisions shows them."""
    fields: tuple[tuple[str, str], ...] = ()
    """Names and values of fields of the paths' pattern."""

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        for name, known in (
            ("verdict", VERDICTS),
            ("decided", _DECIDED),
            ("false_alarms", _SHOWN),
        ):
            if (value := getattr(self, name)) and value not in known:
                raise SettingError(f"{name} {value!r} must be one of {', '.join(known)}")
        for name in _NUMBERS:
            if math.isnan(_number(getattr(self, name) or "0")):
                raise SettingError(f"{name} {getattr(self, name)!r} must be a number")

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Filter:
        """The filter of a query string; other names in it are left alone."""
        names = {field.name for field in fields(cls)} - {"fields"}
        own = tuple(
            (name.removeprefix(PREFIX), value)
            for name, value in values.items()
            if name.startswith(PREFIX) and value
        )
        return cls(**{name: value for name, value in values.items() if name in names}, fields=own)

    @property
    def decided_sql(self) -> str:
        """The condition of decisions."""
        return _DECIDED[self.decided] if self.decided else "true"

    @property
    def dismissed_sql(self) -> str:
        """The condition that leaves out dismissed alarms."""
        return "true" if self.false_alarms or self.decided not in {"", "no"} else "NOT dismissed"

    def sql(self, with_decided: bool = True) -> tuple[str, dict[str, Any]]:
        """A condition over the columns of a list, and its parameters.

        Without `with_decided` it has neither `decided_sql` nor `dismissed_sql`.
        """
        conditions, values = ["true"], dict[str, Any]()
        for name, condition in (_TEXTS | _NUMBERS).items():
            value = getattr(self, name)
            # A product may have an empty name: there only None stands for all.
            if value is not None and (value or name == "product"):
                conditions.append(condition)
                values[name] = float(value) if name in _NUMBERS else value
        for number, (name, value) in enumerate(self.fields):
            conditions.append(f"fields[$field_{number}] = $value_{number}")
            values |= {f"field_{number}": name, f"value_{number}": value}
        if self.verdict:
            conditions.append(VERDICTS[self.verdict])
        if with_decided:
            conditions += [self.decided_sql, self.dismissed_sql]
        return " AND ".join(conditions), values


def _number(text: str) -> float:
    """The number that a text is; NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
