"""Compare a published run with labels and masks: metrics per product, as Parquet and in MLflow.

python -m jobs.evaluate --out out
python -m jobs.evaluate --out s3://bucket/out --run 2026-11-20-6f0c2b8d1e3a4c55
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from jobs import entry
from jobs.tracking import Tracker
from jobs.words import Progress, say
from ops import storage, tables
from ops.fetch import FetchSettings
from ops.inventory import Inventory
from ops.layout import Out
from ops.resize import InputSettings
from pipelines import evaluate
from pipelines.cluster import Slots, connected

_ERRORS = ("oracle_threshold", "oracle_false_alarms", "oracle_misses")
_RATES = ("image_auroc", "pixel_auroc", "pro", "oracle_f1")


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.evaluate."""

    out: str = "out"
    """The output folder that jobs.score wrote to."""
    run: str = ""
    """The run; default: the latest finished one."""
    inventory: str = ""
    """An inventory with labels and masks; default: the one that was scored."""
    cluster: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else one is started for the job."""
    fetch: FetchSettings = field(default_factory=FetchSettings)
    slots: Slots = field(default_factory=Slots)


def main(argv: Sequence[str]) -> int:
    """Evaluate a run."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    out, tracker = Out(settings.out), Tracker(settings.out)
    run_id = settings.run or latest(out)
    if not storage.exists(out.run(run_id)):
        raise FileNotFoundError(f"{out.root} holds no run {run_id}; its runs lie in {out.runs()}")
    record = storage.read_json(out.run(run_id))
    totals = record.get("totals")
    if not totals:
        raise ValueError(f"run {run_id} is not finished; start its jobs.score command again")
    with tracker.run("evaluate", asdict(settings)) as told:
        told.tags |= {"run_id": run_id, "model_id": record["model_id"]}
        labelled = Inventory(settings.inventory or record["inventory"]).read()
        scored = tables.read(totals["table"])
        with Progress() as progress, connected(settings.cluster):
            found = evaluate.evaluate(
                scored,
                labelled,
                InputSettings(**record["input"]),
                settings.fetch,
                settings.slots,
                progress,
            )
        tables.write(out.evaluation(run_id), evaluate.SCHEMA, [found])
        for number, row in enumerate(found.to_pylist()):
            name = "mean" if row["product"] == "mean" else f"product_{number}"
            told.tags[name] = row["product"]
            rates = {f"{name}.{rate}": row[rate] for rate in (*_RATES, *_ERRORS)}
            told.metrics |= {k: v for k, v in rates.items() if v is not None}
    tell(found)
    say(f"evaluation: {out.evaluation(run_id)}")
    return 0


def latest(out: Out) -> str:
    """The finished run that started last. Raises FileNotFoundError if there is none."""
    names = (
        [item.name for item in storage.listing(out.runs())] if storage.is_folder(out.runs()) else []
    )
    records = [storage.read_json(storage.join(out.runs(), name)) for name in names]
    done = [record for record in records if record.get("totals")]
    if not done:
        raise FileNotFoundError(f"{out.root} holds no finished run; python -m jobs.score makes one")
    return str(max(done, key=lambda record: record["started"])["run_id"])


def tell(found: pa.Table) -> None:
    """The metrics as a small table."""
    say(f"{'product':20} {'good':>6} {'bad':>6} " + " ".join(f"{rate:>12}" for rate in _RATES))
    for row in found.to_pylist():
        rates = (f"{row[rate]:12.4f}" if row[rate] is not None else f"{'-':>12}" for rate in _RATES)
        say(f"{row['product'][:20]:20} {row['good']:6} {row['defective']:6} " + " ".join(rates))


if __name__ == "__main__":
    entry.start(main)
