"""Evaluate a finished run against labels and masks: metrics as Parquet and in MLflow, and plots.

python -m jobs.evaluate --out out
python -m jobs.evaluate --out out --published mvtec/patchcore-1
python -m jobs.evaluate --out s3://bucket/out --run 2026-11-20-6f0c2b8d1e3a4c55
python -m jobs.evaluate --out out --labels out
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from jobs.cli import entry
from jobs.cli.console import Progress, echo
from jobs.cli.published_results import Published, published
from jobs.tracking.tracker import Tracker
from ops.archives.fetch import FetchSettings
from ops.archives.inventory import Inventory
from ops.archives.views import views_of, with_detectors
from ops.images.inspection import InspectionMask
from ops.images.inspection_files import read_masks
from ops.images.resize import InputSettings
from ops.plain_text import printable
from ops.results import plots
from ops.results.anomaly_map import Scale
from ops.results.regions import RegionRules
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.cluster.connection import connected
from pipelines.cluster.resources import Resources
from pipelines.reports import evaluate
from pipelines.tables import decisions, run_records

#: Columns of the printed table: heading, width, metric.
_RATES = (
    ("image AUROC", 11, "image_auroc"),
    ("pixel AUROC", 11, "pixel_auroc"),
    ("PRO", 7, "pro"),
    ("best F1", 7, "oracle_f1"),
)
_TRACKED = (
    *("image_auroc", "image_ap", "pixel_auroc", "pixel_auroc_error", "pro", "pro_error"),
    *("pro_0_05", "pro_0_05_error", "oracle_f1", "oracle_pixel_f1", "pixel_f1"),
    *("oracle_threshold", "oracle_false_alarms", "oracle_misses", "oracle_errors"),
    *("threshold", "false_alarms", "misses", "part_auroc", "part_ap"),
    *("region_recall", "false_regions"),
)


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.evaluate."""

    out: str = "out"
    """The output folder that jobs.score wrote to."""
    run: str = ""
    """Id of the run; default: the latest finished one."""
    inventory: str = ""
    """An inventory file with labels and masks; default: the one that was scored. An image of a
    version that it does not list is taken with the label of its address."""
    labels: str = ""
    """An output folder with decisions of people (see jobs.review), such as the value of --out.
    They replace or add to the labels of the inventory: defect is defective, false_alarm is good,
    and images of which people were unsure are left out."""
    published: str = ""
    """Print published results below those of the run: `data set/preset` of
    deploy/published.toml, such as mvtec/patchcore-1."""
    cluster: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else one is started for the job."""
    fetch: FetchSettings = field(default_factory=FetchSettings)
    resources: Resources = field(default_factory=Resources)


def main(argv: Sequence[str]) -> int:
    """Evaluate a run."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    theirs = published(settings.published) if settings.published else None
    entry.check_access(settings)
    out, tracker = Out(settings.out), Tracker(settings.out)
    decided = decisions.of_images(Out(settings.labels)) if settings.labels else None
    record = run_records.finished(out, settings.run)
    run_records.check_not_expired(record)
    run_id, totals = record["run_id"], record["totals"]
    with tracker.run("evaluate", asdict(settings)) as tracked:
        tracked.tags |= {"run_id": run_id, "model_id": record["model_id"]}
        labelled = Inventory(settings.inventory or record["inventory"]).read()
        with (
            run_records.unexpired(out, record),
            Progress() as progress,
            connected(settings.cluster),
        ):
            views = views_of(record)
            scored = with_detectors(parquet.read(totals["table"]), views)
            metrics, separations, joined = evaluate.evaluate(
                scored,
                labelled,
                record.get("thresholds", {}),
                InputSettings(**record["input"]),
                settings.fetch,
                settings.resources,
                progress,
                Scale(**record["map_scale"]),
                _masks(out, record, scored),
                views == "pooled",
                decided,
                record.get("grown_by", ()),
                _regions(record),
            )
        parquet.write(out.evaluation(run_id), evaluate.SCHEMA, [metrics])
        for number, row in enumerate(metrics.to_pylist()):
            name = "mean" if row["product"] == "mean" else f"product_{number}"
            tracked.tags[name] = row["product"]
            tracked.metrics |= {f"{name}.{k}": row[k] for k in _TRACKED if row[k] is not None}
        for number, separation in enumerate(separations):
            picture = out.picture(run_id, separation.product)
            files.write_bytes(picture, plots.draw_separation(separation))
            tracked.files[f"curves/product_{number}.png"] = picture
        if theirs:
            tracked.metrics |= {f"published.{k}": v for k, v in _metrics_of(theirs).items()}
    print_summary(metrics, theirs)
    for sentence in joined.sentences():
        echo(sentence)
    echo(f"metrics: {out.evaluation(run_id)}")
    echo(f"plots: {files.join(out.root, 'evaluations', run_id)}")
    return 0


def _masks(out: Out, record: Mapping[str, Any], scored: pa.Table) -> dict[str, InspectionMask]:
    """The model's inspection masks for the run's detectors, of which the run left a copy."""
    detectors = set(scored["product"].unique().to_pylist())
    folder = out.inspection_masks(record["model_id"])
    return read_masks(folder, record.get("masks", {}), detectors)


def _regions(record: Mapping[str, Any]) -> RegionRules:
    """What counted as a region in the run; nothing if its model was not calibrated for regions."""
    least = record.get("regions", {}).get("min_area", 0.0)
    return RegionRules(record.get("pixel_thresholds", {}), min_area=least)


def print_summary(metrics: pa.Table, theirs: Published | None = None) -> None:
    """Print the metrics of each product, their mean, and below it published results."""
    rows = metrics.to_pylist()
    rates = " ".join(f"{heading:>{width}}" for heading, width, _ in _RATES)
    echo(
        f"{'product':11} {'good':>6} {'bad':>5} {rates} {'best-F1 errors':>14} "
        f"{'false alarms':>12} {'missed':>7}"
    )
    for row in rows:
        echo(_line(row, 4))
    if theirs:
        ours, of_theirs = len(rows) - 1, theirs.products
        echo(_line({"product": "published", **_metrics_of(theirs)}, 3))
        note = (
            "" if ours == of_theirs else f", a mean over {of_theirs} products; ours is over {ours}"
        )
        echo(f"published: {theirs.name}, {theirs.source}{note}")
    echo(
        "best-F1 errors = false alarms + missed defects at the threshold with the best F1, which "
        "is chosen\nwith the labels; the last two columns are those at the threshold of the model"
    )
    for sentence in filter(None, [_caught(rows[:-1])]):
        echo(sentence)
    mean = rows[-1]
    if further := _further(mean):
        echo(f"mean {further}")
    if mean["pixel_auroc_error"] is not None:
        echo(
            "the 16 bits of maps change the mean pixel AUROC by at most "
            f"{mean['pixel_auroc_error']:.1e}, the mean PRO by {mean['pro_error']:.1e}"
        )
    for row in rows:
        if row["note"]:
            echo(f"{printable(row['product'])}: {printable(row['note'])}")
    _print_parts([row for row in rows if row["good_parts"] is not None])


def _print_parts(rows: Sequence[dict[str, Any]]) -> None:
    """Print the metrics of parts, of products that have any."""
    if not rows:
        return
    echo(
        f"parts, each by the highest score of its images\n{'product':11} {'good':>6} {'bad':>5} "
        f"{'AUROC':>7} {'AP':>7}"
    )
    for row in rows:
        rates = " ".join(_cell(row[name], 7, ".4f") for name in ("part_auroc", "part_ap"))
        product = printable(row["product"])[:11]
        echo(f"{product:11} {row['good_parts']:>6,} {row['defective_parts']:>5,} {rates}")


def _further(mean: dict[str, Any]) -> str:
    """Metrics that the table has no room for, for people."""
    names = (
        ("image AP", "image_ap"),
        ("PRO up to 0.05", "pro_0_05"),
        ("best pixel F1", "oracle_pixel_f1"),
        ("pixel F1 at the model's threshold", "pixel_f1"),
        ("share of defects that a region touches", "region_recall"),
        ("false regions an image", "false_regions"),
    )
    known = [(heading, mean[name]) for heading, name in names if mean[name] is not None]
    return ", ".join(f"{heading} {value:.4f}" for heading, value in known)


def _cell(value: Any, width: int, form: str = "") -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"


def _line(row: dict[str, Any], digits: int) -> str:
    counts = f"{_cell(row.get('good', ''), 6, _form(row, 'good'))} "
    counts += _cell(row.get("defective", ""), 5, _form(row, "defective"))
    rates = " ".join(_cell(row.get(name), width, f".{digits}f") for _, width, name in _RATES)
    verdicts = f"{_cell(row.get('false_alarms'), 12, ',')} {_cell(row.get('misses'), 7, ',')}"
    product = printable(row["product"])[:11]
    return f"{product:11} {counts} {rates} {_cell(_errors(row), 14)} {verdicts}"


def _form(row: dict[str, Any], name: str) -> str:
    return "," if name in row else ""


def _caught(products: Sequence[dict[str, Any]]) -> str:
    """What the verdicts of the model are worth, over products that it gives a verdict."""
    judged = [row for row in products if row["misses"] is not None]
    if not judged:
        return ""
    total = {
        name: sum(row[name] for row in judged)
        for name in ("good", "defective", "false_alarms", "misses")
    }
    caught = total["defective"] - total["misses"]
    return (
        f"at the threshold of the model, {caught:,} of {total['defective']:,} defects are caught,\n"
        f"and {total['false_alarms']:,} of {total['good']:,} good images are false alarms"
    )


def _errors(row: dict[str, Any]) -> str | None:
    """`12 = 5 + 7`, or the sum alone where no more was published."""
    alarms, misses = row.get("oracle_false_alarms"), row.get("oracle_misses")
    if alarms is None or misses is None:
        total = row.get("oracle_errors")
        return None if total is None else f"{total:,}"
    return f"{alarms + misses:,} = {alarms:,} + {misses:,}"


def _metrics_of(theirs: Published) -> dict[str, float]:
    named = asdict(theirs).items()
    return {k: v for k, v in named if v is not None and k not in {"name", "source", "products"}}


if __name__ == "__main__":
    entry.start(main)
