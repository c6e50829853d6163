"""The message at the end of a night, as JSON, and in the forms that Slack and Teams take.

docs/message.schema.json is the schema of the JSON. Text of the archive is escaped, or stands where
the receiver reads neither links nor mentions in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jobs.tracking.record import title
from ops.plain_text import printable
from ops.redact import redact

#: Version of the schema.
VERSION = 1
#: Warnings in a message, and characters of each text: Slack and Teams refuse long ones.
_WARNINGS, _TEXT = 10, 500
#: Names in the record of a night, and those of its totals, that are counts of images.
_LISTED = ("listed", "new", "changed", "retried", "differing")
_SCORED = ("images", "copied", "anomalous", "failed")


def describe(night: Mapping[str, Any]) -> tuple[str, str]:
    """A title for a night, and a sentence about it, given its record."""
    date, totals = _date(night), night.get("totals", {})
    heading = title("nightly", date, night.get("products", ()), totals.get("images", 0))
    if "error" in night:
        return heading, f"The night {date} failed: {night['error']}"
    images = "No image was pending"
    if totals:
        images = (
            f"{totals['images']:,} images under {night['model_name'] or night['model_id'][:8]}: "
            f"{totals['anomalous']:,} anomalous, {totals['failed']:,} failed"
        )
    return heading, f"{images}; {len(night.get('warnings', ())):,} warnings."


def status_of(night: Mapping[str, Any]) -> str:
    """How a night ended: good, warned or failed."""
    return "failed" if "error" in night else "warned" if night.get("warnings") else "good"


def counts(night: Mapping[str, Any]) -> dict[str, int]:
    """The counts of images in the record of a night, by what they count."""
    totals = night.get("totals", {})
    listed = {name: night[name] for name in _LISTED if name in night}
    return listed | {"scored" if n == "images" else n: totals[n] for n in _SCORED if n in totals}


def message(night: Mapping[str, Any], message_id: str, out: str) -> dict[str, Any]:
    """The message about a night, given its record; without secrets and control characters."""
    totals, warnings = night.get("totals", {}), night.get("warnings", [])
    heading, text = describe(night)
    content = {
        "version": VERSION,
        "id": message_id,
        "status": status_of(night),
        "title": heading,
        "text": text,
        "night": _date(night),
        "started": night["started"],
        "ended": night["ended"],
        "out": out,
        "model": night.get("model_name") or None,
        "model_id": night.get("model_id"),
        "run_id": night.get("run_id"),
        "images": counts(night),
        "images_per_second": totals.get("images_per_second"),
        "warnings": warnings[:_WARNINGS],
        "warnings_total": len(warnings),
        "error": night.get("error"),
        "report": night.get("report"),
    }
    return {name: _safe(value) for name, value in content.items()}


def _date(night: Mapping[str, Any]) -> str:
    return str(night.get("night") or night["started"][:10])


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        text = printable(redact(value))
        return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
    return [_safe(each) for each in value] if isinstance(value, list) else value


def _lines(content: Mapping[str, Any]) -> list[str]:
    """The message in lines for people, behind its title."""
    warnings, more = content["warnings"], content["warnings_total"] - len(content["warnings"])
    lines = [content["text"], *(f"• {sentence}" for sentence in warnings)]
    lines += [f"• and {more:,} more warnings"] if more else []
    lines += [f"report: {content['report']}"] if content["report"] else []
    return [*lines, f"output: {content['out']}"]


def _heading(content: Mapping[str, Any]) -> str:
    return f"{content['status'].upper()}: {content['title']}"


def _slack(content: Mapping[str, Any]) -> dict[str, Any]:
    """Blocks of plain text, in which Slack reads no links, mentions or marks of its own."""
    blocks = [
        {"type": "section", "text": {"type": "plain_text", "text": line, "emoji": False}}
        for line in [_heading(content), *_lines(content)]
    ]
    fallback = _heading(content)
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        fallback = fallback.replace(character, entity)
    return {"text": fallback, "blocks": blocks}


def _teams(content: Mapping[str, Any]) -> dict[str, Any]:
    """An adaptive card of text runs, in which Teams reads no Markdown."""
    colour = {"good": "good", "warned": "warning", "failed": "attention"}[content["status"]]
    runs = [{"type": "TextRun", "text": _heading(content), "weight": "bolder", "color": colour}]
    runs += [{"type": "TextRun", "text": line} for line in _lines(content)]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [{"type": "RichTextBlock", "inlines": [run]} for run in runs],
    }
    kind = "application/vnd.microsoft.card.adaptive"
    return {"type": "message", "attachments": [{"contentType": kind, "content": card}]}


#: What a receiver takes, made of a message.
FORMS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "json": dict,
    "slack": _slack,
    "teams": _teams,
}
