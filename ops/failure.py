"""Why an image has no score, and how many such images a run accepts."""

from __future__ import annotations

import math

from ops.errors import RunError, SettingError

#: status -> what it means; `ok` is the only one that comes with a score.
STATUSES: dict[str, str] = {
    "ok": "scored",
    "missing": "listed in the inventory, but absent when it was read",
    "changed": "it, or the archive that holds it, was replaced after it was listed",
    "forbidden": "the store denied access to it",
    "unavailable": "the store kept failing after every retry",
    "unreadable": "empty, truncated, damaged, or not an image",
    "unsupported": "of a kind that cannot be scored (animated, camera RAW), or values off scale",
    "too_large": "more bytes or pixels than the limits allow",
    "unknown_product": "the model holds no detector for its product",
    "undefined": "the detector returned a score that is not a finite number",
    "crashed_worker": "every worker process that handled it died",
}
#: Failures whose cause may be gone at the next attempt.
TRANSIENT = ("missing", "changed", "forbidden", "unavailable", "crashed_worker")


class Failure(Exception):
    """Why one image has no score: a status of `STATUSES` and a sentence for people."""

    def __init__(self, status: str, reason: str) -> None:
        if status not in STATUSES or status == "ok":
            raise ValueError(f"no failure: {status!r}; known: {sorted(STATUSES)}")
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


class TooManyFailures(RunError):
    """More images failed than --max-failed allows."""


def max_failures(limit: str, total: int, setting: str = "max_failed") -> int:
    """How many failures `10`, `5%` or `0.05` allow among `total` images.

    Raises SettingError, which names the setting, for any other limit.
    """
    text = limit.strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else None
        value = float(text.removesuffix("%"))
    except ValueError:
        raise SettingError(
            f"{setting} {limit!r} is neither a count nor a share such as 5%"
        ) from None
    if share is None and "." in text:
        share = value
    if not 0 <= value < math.inf or (share is not None and share > 1):
        raise SettingError(f"{setting} {limit!r} must be a count, or a share from 0% to 100%")
    return int(value) if share is None else int(share * total)
