"""Prove that a finished run kept its promise, from its files alone, or say what is wrong.

python -m jobs.check --out out
python -m jobs.check 2026-11-20-6f0c2b8d1e3a4c55 --out s3://bucket/out --map-sample 0.01

Exits with 0 if every image of the inventory has exactly one valid row, and every map that was
promised is there and can be decoded; else with 1, after each broken rule, values, and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.cli import entry
from jobs.cli.console import Progress, echo, shown
from ops.detectors.model_folder import ModelCard, read_card
from ops.errors import SettingError
from ops.storage import files, paths
from ops.storage.paths import Out
from pipelines.scoring import verify
from pipelines.scoring.violations import Findings, RunUnderCheck
from pipelines.tables import run_records


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.check."""

    run: str = ""
    """The run; default: the latest finished one."""
    out: str = "out"
    """The output folder that jobs.score wrote to."""
    inventory: str = ""
    """The inventory that was scored; default: where it lay then."""
    model: str = ""
    """The folder of the model that scored; default: the one below OUT, if it is there."""
    map_sample: float = 1.0
    """The share of maps that is read, chosen by a hash of the images' ids; 1 reads all."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0 <= self.map_sample <= 1:
            raise SettingError(f"map_sample {self.map_sample} must lie between 0 and 1")


def main(argv: Sequence[str]) -> int:
    """Check a run."""
    settings, _ = entry.parse(Settings, __doc__, argv, words=("run",))
    entry.check_access(settings)
    out = Out(settings.out)
    record = run_records.finished(out, settings.run)
    run_id = settings.run or str(record["run_id"])
    subject = RunUnderCheck(
        out,
        run_id,
        record,
        settings.inventory or str(record.get("inventory")),
        _card(settings.model, out, str(record.get("model_id"))),
    )
    with Progress() as progress:
        found = verify.check(subject, settings.map_sample, progress)
    for violation in found.violations.values():
        echo(f"broken: {violation.rule}")
        for value in violation.examples:
            echo(f"  found:  {shown(value)}")
        if violation.count > len(violation.examples):
            echo(f"  found:  {violation.count - len(violation.examples)} more like these")
        echo(f"  remedy: {violation.remedy}")
    echo(_sentence(run_id, found))
    return 1 if found.violations else 0


def _card(model: str, out: Out, model_id: str) -> ModelCard | None:
    """The card of the model that was named, or of the one on record where fits leave theirs."""
    if model:
        return read_card(model)
    usual = out.model(model_id)
    at_hand = files.exists(files.join(usual, paths.MODEL_CARD))
    return read_card(usual) if at_hand else None


def _sentence(run_id: str, found: Findings) -> str:
    read = (
        f"all {found.maps_named} maps"
        if found.maps_read == found.maps_named
        else f"{found.maps_read} of {found.maps_named} maps, chosen by a hash of their ids,"
    )
    if found.violations:
        rules = f"{len(found.violations)} rule{'s' * (len(found.violations) > 1)}"
        return f"run {run_id} breaks {rules}; {found.images} rows and {read} were read"
    return (
        f"run {run_id} kept its promise: {found.images} images with one valid row each; "
        f"{read} read and found sound"
    )


if __name__ == "__main__":
    entry.start(main)
