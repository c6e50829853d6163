"""Compare two finished runs: flips, ranks, movers, drift; as Parquet, pictures and in MLflow.

python -m jobs.compare --out out
python -m jobs.compare 2026-11-19-6f0c2b8d1e3a4c55 2026-11-20-0b1d7c3e9a5f2468 --out s3://bucket/out

Two nights of one model, or two models over one archive. Raw scores of different models have no
common unit; then p-values and ranks alone are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from jobs.cli import entry
from jobs.cli.console import Progress, echo, shown
from jobs.tracking.tracker import Record, Tracker
from ops.errors import SettingError
from ops.storage.paths import Out
from pipelines.reports import compare
from pipelines.reports.compare import Compared, CompareSettings
from pipelines.tables import run_records

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
#: Products whose figures are metrics of their own; the table has all.
_TRACKED = 50
_MOVERS_SAID = 5


@dataclass(frozen=True)
class Settings(CompareSettings):
    """Settings of jobs.compare."""

    a: str = ""
    """The first run; default: the latest finished one but one."""
    b: str = ""
    """The second run; default: the latest finished one."""
    out: str = "out"
    """The output folder that jobs.score wrote to."""
    labels: str = ""
    """An inventory whose labels say which calls were right."""


def main(argv: Sequence[str]) -> int:
    """Compare two runs."""
    settings, _ = entry.parse(Settings, __doc__, argv, words=("a", "b"))
    entry.check_access(settings)
    out = Out(settings.out)
    before, after = _runs(out, settings)
    runs = str(before["run_id"]), str(after["run_id"])
    with Tracker(settings.out).run("compare", asdict(settings)) as told:
        told.tags |= {"run_a": runs[0], "run_b": runs[1]}
        told.tags |= {"model_a": before["model_id"], "model_b": after["model_id"]}
        with Progress() as progress:
            found = compare.compare(out, before, after, settings.labels, settings, progress)
        _track(told, found)
        for name in ("products", "movers"):
            told.files[f"comparison/{name}.parquet"] = out.comparison(*runs, name)
        for number, location in enumerate(found.pictures.values()):
            told.files[f"comparison/picture_{number}.png"] = location
    echo(f"A: run {runs[0]}, model {before['model_id']}")
    echo(f"B: run {runs[1]}, model {after['model_id']}")
    print_summary(found)
    echo(f"tables and pictures: {out.comparisons(*runs)}")
    return 0


def _runs(out: Out, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    if bool(settings.a) != bool(settings.b):
        raise SettingError("name two runs, or none to compare the last two")
    if settings.a:
        before, after = run_records.finished(out, settings.a), run_records.finished(out, settings.b)
    else:
        before, after = run_records.latest(out, 2)
    for record in (before, after):
        run_records.check_whole(record)
    return before, after


def _track(told: Record, found: Compared) -> None:
    rows = found.products.to_pylist()
    told.metrics |= {name: sum(row[name] for row in rows) for name in (*_COUNTED, *_COUNTED_TOO)}
    for name in ("ks", "psi"):
        if known := [row[name] for row in rows if row[name] is not None]:
            told.metrics[f"max_{name}"] = max(known)
    for number, row in enumerate(rows[:_TRACKED]):
        told.tags[f"product_{number}"] = str(row["product"])
        measured = {k: row[k] for k in _MEASURED if row[k] is not None}
        told.metrics |= {f"product_{number}.{k}": v for k, v in measured.items()}


def print_summary(found: Compared) -> None:
    """A row per product, what its figures mean, and the images that moved most."""
    rows = found.products.to_pylist()
    echo(
        f"{'product':16} {'both':>7} {'only A':>6} {'only B':>6} {'failed':>9} {'flips':>9} "
        f"{'Spearman':>8} {'Kendall':>7} {'KS':>5} {'q':>7} {'PSI':>6}"
    )
    for row in rows:
        echo(_line(row))
    if rows and not any(row["both"] for row in rows):
        echo(
            "The runs share no image, as nights that score only what is new: only distributions are"
        )
        echo("compared. Name two runs that do, or join by address: --join uri")
    echo("failed: in A and B; flips: + called anomalous by B alone, - by A alone")
    changed, moved = (sum(row[name] for row in rows) for name in ("status", "moved"))
    echo(f"{changed} images changed their status, {moved} their product")
    if any(row["measure"] == "p_value" for row in rows):
        echo("The models differ, and with them the unit of scores: KS and PSI are of p-values, and")
        echo("Spearman, Kendall and pictures of ranks.")
    echo("KS, q and PSI: drift of the distribution; q is the p-value of KS, adjusted for all")
    echo("products: of those with q < 0.05 about one in twenty is chance. With many images the")
    echo(
        "slightest drift has a small q; see PSI too: above 0.1 slight, above 0.25 marked by custom."
    )
    if labelled := sum(row["labelled"] for row in rows):
        errors = [sum(row[f"errors_{side}"] for row in rows) for side in ("a", "b")]
        echo(f"of {labelled} labelled images A called {errors[0]} wrong, B {errors[1]}")
    for row in _most_moved(found.movers):
        places = f"from the {_place(row['rank_a'])} in A to the {_place(row['rank_b'])} in B"
        echo(f"moved: {shown(row['uri'])}, {places}")


def _line(row: dict[str, Any]) -> str:
    def cell(value: Any, width: int, form: str) -> str:
        return f"{'-' if value is None else format(value, form):>{width}}"

    failed = f"{row['failed_a']} {row['failed_b']}"
    flips = f"+{row['became_anomalous']} -{row['became_normal']}"
    return (
        f"{shown(row['product'] or '-')[:16]:16} {row['both']:>7} {row['only_in_a']:>6} "
        f"{row['only_in_b']:>6} {failed:>9} {flips:>9} {cell(row['spearman'], 8, '.3f')} "
        f"{cell(row['kendall'], 7, '.3f')} {cell(row['ks'], 5, '.3f')} "
        f"{cell(row['ks_q'], 7, '.1g')} {cell(row['psi'], 6, '.3f')}"
    )


def _most_moved(movers: pa.Table) -> list[dict[str, Any]]:
    rows = movers.to_pylist()
    return sorted(rows, key=lambda r: -abs(r["rank_b"] - r["rank_a"]))[:_MOVERS_SAID]


def _place(rank: float) -> str:
    return f"top {100 * (1 - rank):.1f} %"


if __name__ == "__main__":
    entry.start(main)
