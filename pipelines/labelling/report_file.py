"""Decisions as the buttons of a report save them."""

from __future__ import annotations

from typing import Any

from pipelines.labelling import strict_json
from pipelines.labelling.statements import Statements


def read(content: dict[str, Any], into: Statements) -> None:
    """Read `{"decisions": [{image_id, run_id, decision, who, decided_at}, ...]}`."""
    entries = strict_json.objects(into.refusals.file, content["decisions"], "decisions")
    for number, entry in enumerate(entries, 1):
        into.add(
            f"entry {number}",
            entry.get("decision"),
            image_id=entry.get("image_id"),
            run_id=entry.get("run_id"),
            who=entry.get("who"),
            at=entry.get("decided_at"),
        )
