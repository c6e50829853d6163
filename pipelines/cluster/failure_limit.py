"""How many images may fail before a job says so and ends."""

from __future__ import annotations

import math

from ops.errors import RunError, SettingError


class TooManyFailures(RunError):
    """More images failed than --max-failed allows."""


def max_failures(limit: str, total: int) -> int:
    """How many failures `10`, `5%` or `0.05` allow among `total` images."""
    text = limit.strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else None
        value = float(text.removesuffix("%"))
    except ValueError:
        raise SettingError(
            f"max_failed {limit!r} is neither a count nor a share such as 5%"
        ) from None
    if share is None and "." in text:
        share = value
    if not 0 <= value < math.inf or (share is not None and share > 1):
        raise SettingError(f"max_failed {limit!r} must be a count, or a share from 0% to 100%")
    return int(value) if share is None else int(share * total)
