"""What a job tells the tracker."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Record:
    """What a job tracks: delivered as a whole, or kept in a spool until the tracker answers."""

    job: str
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    """Values per epoch."""
    files: dict[str, str] = field(default_factory=dict)
    """Artifacts: path in the run -> location of the file until it is delivered."""
    title: str = ""
    """The name of the run, see `title`; empty = the job's."""
    description: str = ""
    """A sentence for people."""
    status: str = "FINISHED"
    started_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    ended_ms: int = 0
    delivery: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tag of the run. It finds a run that was created although the answer was lost."""


def title(job: str, night: str = "", products: Collection[str] = (), images: int = 0) -> str:
    """The name of a run: job, night, product or their number, and number of images."""
    one = next(iter(products)) if len(products) == 1 else f"{len(products):,} products"
    parts = [f"{job} {night}".strip(), one if products else "", f"{images:,} images"]
    return ", ".join(part for part in parts[: 3 if images else 2] if part)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out
