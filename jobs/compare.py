"""Compare two runs or two models: changed verdicts, ranks, drift, as Parquet, plots and in MLflow.

python -m jobs.compare --out out
python -m jobs.compare 2026-11-19-6f0c2b8d1e3a4c55 2026-11-20-0b1d7c3e9a5f2468 --out s3://bucket/out
python -m jobs.compare --models champion,challenger --out out --labels test.parquet

Two models are compared by their current scores over all nights: of each image the newest valid row,
without images that are gone from the archive. Scores of different models have no common unit, so
only their p-values and ranks are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from jobs.cli import entry
from jobs.cli.console import Progress, echo
from jobs.tracking.record import Record
from jobs.tracking.tracker import Tracker
from ops.errors import SettingError, UserError
from ops.plain_text import printable
from ops.storage.paths import Out
from pipelines.reports import compare
from pipelines.reports.compare import Compared, CompareSettings
from pipelines.reports.sides import Models, Runs, Sides
from pipelines.tables import model_names, run_records

_COUNTED = (
    "both",
    "only_in_a",
    "only_in_b",
    "status",
    "moved",
    "became_anomalous",
    "became_normal",
)
_COUNTED_TOO = ("failed_a", "failed_b", "anomalous_a", "anomalous_b")
_MEASURED = ("ks", "ks_q", "wasserstein", "psi", "spearman", "kendall")
#: Number of products whose metrics are tracked one by one; the table has all.
_TRACKED = 50
_PRINTED_MOVERS = 5


@dataclass(frozen=True)
class Settings(CompareSettings):
    """Settings of jobs.compare."""

    a: str = ""
    """Id of the first run; default: the latest finished one but one."""
    b: str = ""
    """Id of the second run; default: the latest finished one."""
    models: str = ""
    """Two models in place of runs, comma-separated: each by its id or the start of it, or by a name
    that a run recorded, such as "tiles v3" or champion."""
    out: str = "out"
    """The output folder that jobs.score wrote to."""
    labels: str = ""
    """An inventory file with labels, to count the wrong verdicts of A and of B on test images. An
    image of a version that it does not list is taken with the label of its address. Not counted are
    images that a model is known to be made of: splits train and validation, false alarms that it
    was grown by, and those that its folder in OUT/models/ names."""


def main(argv: Sequence[str]) -> int:
    """Compare two runs or two models."""
    settings, _ = entry.parse(Settings, __doc__, argv, words=("a", "b"))
    entry.check_access(settings)
    sides = _sides(Out(settings.out), settings)
    names = sides.before.name, sides.after.name
    with Tracker(settings.out).run("compare", asdict(settings)) as tracked:
        tracked.title = f"compare {sides.before.short} with {sides.after.short}"
        tracked.tags |= _tags(sides)
        with Progress() as progress:
            compared = compare.compare(sides, settings.labels, settings, progress)
        _track(tracked, compared)
        for name in ("products", "movers"):
            tracked.files[f"comparison/{name}.parquet"] = sides.out.comparison(*names, name)
        for number, location in enumerate(compared.pictures.values()):
            tracked.files[f"comparison/picture_{number}.png"] = location
    for letter, side, left_out in zip("AB", sides, sides.gone, strict=True):
        note = f"; {left_out:,} images are gone from the archive and left out" if left_out else ""
        echo(f"{letter}: {printable(side.title)}{note}")
    print_summary(compared)
    echo(f"tables and plots: {sides.out.comparisons(*names)}")
    return 0


def _sides(out: Out, settings: Settings) -> Sides:
    if settings.models:
        return _models(out, settings)
    if bool(settings.a) != bool(settings.b):
        raise SettingError(
            "name two runs, or none to compare the last two; --models names two models"
        )
    if settings.a:
        before, after = run_records.finished(out, settings.a), run_records.finished(out, settings.b)
    else:
        before, after = run_records.latest(out, 2)
    for record in (before, after):
        run_records.check_not_expired(record)
    return Runs(out, before, after)


def _models(out: Out, settings: Settings) -> Models:
    if settings.a or settings.b:
        raise SettingError("compare two runs or two --models, not both")
    asked = [name.strip() for name in settings.models.split(",")]
    if len(asked) != 2 or not all(asked):
        raise SettingError(
            f"models {settings.models!r} must name two models, such as champion,challenger"
        )
    before, after = (model_names.find(out, name) for name in asked)
    if before.model_id == after.model_id:
        raise UserError(f"{asked[0]} and {asked[1]} are one model, {before}; name another one")
    return Models(out, before, after)


def _tags(sides: Sides) -> dict[str, str]:
    kind = "run" if isinstance(sides, Runs) else "model_name"
    return {
        f"{what}_{letter}": value
        for letter, side in zip("ab", sides, strict=True)
        for what, value in ((kind, side.short), ("model", side.model_id))
    }


def _track(tracked: Record, compared: Compared) -> None:
    rows = compared.products.to_pylist()
    tracked.metrics |= {name: sum(row[name] for row in rows) for name in (*_COUNTED, *_COUNTED_TOO)}
    tracked.metrics |= compared.regions._asdict()
    for name in ("ks", "psi"):
        if known := [row[name] for row in rows if row[name] is not None]:
            tracked.metrics[f"max_{name}"] = max(known)
    for number, row in enumerate(rows[:_TRACKED]):
        tracked.tags[f"product_{number}"] = str(row["product"])
        measured = {k: row[k] for k in _MEASURED if row[k] is not None}
        tracked.metrics |= {f"product_{number}.{k}": v for k, v in measured.items()}


def print_summary(compared: Compared) -> None:
    """Print a row per product, what its columns mean, and the images that moved most."""
    rows = compared.products.to_pylist()
    echo(
        f"{'product':16} {'both':>7} {'only A':>6} {'only B':>6} {'failed':>9} {'changed':>9} "
        f"{'Spearman':>8} {'Kendall':>7} {'KS':>5} {'q':>7} {'PSI':>6}"
    )
    for row in rows:
        echo(_line(row))
    for line in _explanations(rows):
        echo(line)
    if compared.other_versions:
        echo(
            f"{compared.other_versions} images are in A and B as different versions, which are "
            "not paired;\n--join uri pairs them"
        )
    for sentence in filter(None, (compared.parts.sentence, compared.regions.sentence)):
        echo(sentence)
    for sentence in compared.joined.sentences() if compared.joined else ():
        echo(sentence)
    for row in _most_moved(compared.movers):
        places = f"from the {_place(row['rank_a'])} in A to the {_place(row['rank_b'])} in B"
        echo(f"moved: {printable(row['uri'])}, {places}")


def _explanations(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    if rows and not any(row["both"] for row in rows):
        lines += [
            "A and B share no image, as two nights that each score only new images; only the",
            "distributions are compared. Compare runs that share images, or --models; or use",
            "--join uri.",
        ]
    lines.append("failed: in A and in B; changed: verdicts, + anomalous only in B, - only in A")
    statuses, products = (sum(row[name] for row in rows) for name in ("status", "moved"))
    lines.append(f"{statuses} images changed their status, {products} their product")
    if any(row["measure"] == "p_value" for row in rows):
        lines += [
            "The models differ, and so does the unit of their scores: KS and PSI compare p-values;",
            "Spearman, Kendall and plots compare ranks.",
        ]
    lines += [
        "KS and PSI: drift of the distribution. q: p-value of KS, adjusted for the number of",
        "products; about 5 % of the products with q < 0.05 are chance. With many images q is small",
        "for any drift, so look at PSI too: by convention, above 0.1 is slight, above 0.25 marked.",
    ]
    if labelled := sum(row["labelled"] for row in rows):
        errors = [sum(row[f"errors_{side}"] for row in rows) for side in ("a", "b")]
        lines.append(
            f"wrong verdicts on {labelled} labelled images: {errors[0]} in A, {errors[1]} in B"
        )
    return lines


def _line(row: dict[str, Any]) -> str:
    def cell(value: Any, width: int, form: str) -> str:
        return f"{'-' if value is None else format(value, form):>{width}}"

    failed = f"{row['failed_a']} {row['failed_b']}"
    changed = f"+{row['became_anomalous']} -{row['became_normal']}"
    return (
        f"{printable(row['product'] or '-')[:16]:16} {row['both']:>7} {row['only_in_a']:>6} "
        f"{row['only_in_b']:>6} {failed:>9} {changed:>9} {cell(row['spearman'], 8, '.3f')} "
        f"{cell(row['kendall'], 7, '.3f')} {cell(row['ks'], 5, '.3f')} "
        f"{cell(row['ks_q'], 7, '.1g')} {cell(row['psi'], 6, '.3f')}"
    )


def _most_moved(movers: pa.Table) -> list[dict[str, Any]]:
    rows = movers.to_pylist()
    return sorted(rows, key=lambda r: -abs(r["rank_b"] - r["rank_a"]))[:_PRINTED_MOVERS]


def _place(rank: float) -> str:
    return f"top {100 * (1 - rank):.1f} %"


if __name__ == "__main__":
    entry.start(main)
