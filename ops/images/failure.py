"""The kinds of failure that an image can have, and the exception that carries one."""

from __future__ import annotations

#: status -> what it means; `ok` is the only one that comes with a score.
STATUSES: dict[str, str] = {
    "ok": "scored",
    "missing": "listed in the inventory, but gone when it was read",
    "forbidden": "the store refused to hand it out",
    "unavailable": "the store kept failing after every retry",
    "unreadable": "empty, cut short, damaged, or not an image at all",
    "unsupported": "an image of a kind that is not scored (animated, float, 32 bit)",
    "too_large": "more bytes or pixels than the limits allow",
    "unknown_product": "the model holds no detector for its product",
    "undefined": "the detector returned a score that is not a finite number",
    "crashed_worker": "every worker process that touched it died",
}
#: Failures whose cause may be mended by the next attempt.
PASSING = ("missing", "forbidden", "unavailable", "crashed_worker")


class Failure(Exception):
    """Why one image has no score: a status of `STATUSES` and a sentence for people."""

    def __init__(self, status: str, reason: str) -> None:
        if status not in STATUSES or status == "ok":
            raise ValueError(f"a failure is one of {sorted(STATUSES)[:]} but ok, not {status!r}")
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"
