"""Store decisions from a file: one that a report saved, CSV, COCO, or Label Studio JSON.

python -m jobs.label decisions-2026-11-20.json --out out
python -m jobs.label s3://bucket/inspected.csv --out s3://bucket/out --who ann

A file is stored whole, as one table below OUT/labels/, or not at all. Decisions that are stored
already are left out, so the same file can be given again. See docs/review.md for the formats.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.cli import entry, rows
from jobs.cli.console import echo
from jobs.cli.user_name import user_name
from jobs.tracking.tracker import Tracker
from ops.errors import SettingError
from ops.plain_text import printable
from ops.results.decision_table import DECISIONS, LONGEST_NAME
from ops.storage.paths import Out
from pipelines.labelling import decision_file, publish, resolve
from pipelines.labelling.publish import Published
from pipelines.tables import model_names, run_records
from pipelines.tables.model_names import NamedModel


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.label."""

    decisions: str = ""
    """The file of decisions: .json or .csv, a path or s3:// URI."""
    out: str = "out"
    """The output folder that holds the nights."""
    model_id: str = ""
    """The model, for decisions that name no run: its id or the start of it, or a name that a run
    recorded, such as "tiles v3" or champion; default: the model of the latest finished run."""
    who: str = ""
    """Who decided, where the file does not say; default: the name of the user."""

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        if len(self.who) > LONGEST_NAME or not self.who.isprintable():
            raise SettingError(
                f"who {self.who[:LONGEST_NAME]!r} must have at most {LONGEST_NAME} characters, all "
                "of which can be printed"
            )


def main(argv: Sequence[str]) -> int:
    """Store decisions."""
    settings, _ = entry.parse(Settings, __doc__, argv, words=("decisions",))
    if not settings.decisions:
        raise SettingError("name the file: python -m jobs.label FILE --out OUT")
    entry.check_access(settings)
    out, who = Out(settings.out), settings.who or user_name()
    now = datetime.datetime.now(datetime.UTC)

    def model() -> NamedModel:
        if settings.model_id:
            named = model_names.find(out, settings.model_id)
        else:
            named = model_names.named(run_records.finished(out))
        echo(f"model: {named}")
        return named

    file = decision_file.read(settings.decisions)
    decided = resolve.rows(out, file, model, who, now)
    publish.check(file.location, file.statements, decided)
    with Tracker(settings.out).run("label", asdict(settings)) as tracked:
        published = publish.publish(out, file.statements, decided)
        counts = Counter(row["decision"] for row in published.rows)
        tracked.metrics |= {name: float(number) for name, number in counts.items()}
        tracked.metrics |= {"known": float(published.known), "replaced": float(published.replaced)}
        tracked.title = f"label, {len(published.rows):,} decisions"
        tracked.description = f"Decisions of {file.location} ({file.source})."
        tracked.tags["table"] = published.location
    for note in file.notes:
        echo(printable(note))
    _summary(file.location, len(decided), published)
    return 0


def _summary(file: str, number: int, published: Published) -> None:
    known = f", {published.known:,} were known" if published.known else ""
    echo(f"{printable(file)}: {number:,} decisions{known}")
    if not published.location:
        echo("nothing is new, so nothing is stored")
        return
    words = [word for word in DECISIONS if any(r["decision"] == word for r in published.rows)]
    rows.show(list(_by_product(published.rows, words)), ["product", *words])
    if published.replaced:
        echo(f"earlier decisions that are replaced: {published.replaced:,}")
    if published.overruled:
        echo(f"decisions that are older than the one that stands: {published.overruled:,}")
    echo(f"stored: {printable(published.location)}")


def _by_product(
    decided: Sequence[dict[str, Any]], words: Iterable[str]
) -> Iterable[dict[str, Any]]:
    counts = Counter((row["product"] or "", row["decision"]) for row in decided)
    for product in sorted({product for product, _ in counts}):
        yield {"product": product or None} | {word: counts[product, word] for word in words}


if __name__ == "__main__":
    entry.start(main)
