"""Check that a finished run is complete and correct, from its files alone.

python -m jobs.check --out out
python -m jobs.check 2026-11-20-6f0c2b8d1e3a4c55 --out s3://bucket/out --map-sample 0.01

Exits with 0 if every image of the inventory has exactly one valid row, every map that the settings
of the run ask for exists and can be decoded, the images that it reads have the bytes that were
scored, and all decisions of people can be read. Otherwise it prints each broken rule with examples
and a remedy, and exits with 1. It states how many images have changed in the archive since; the
next night scores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.cli import entry
from jobs.cli.console import Progress, echo
from ops.detectors.model_card import ModelCard
from ops.detectors.model_folder import read_card
from ops.errors import SettingError
from ops.plain_text import printable
from ops.storage import files, paths
from ops.storage.paths import Out
from pipelines.scoring import verify
from pipelines.scoring.violations import Findings, RunUnderCheck
from pipelines.tables import run_records


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.check."""

    run: str = ""
    """Id of the run; default: the latest finished one."""
    out: str = "out"
    """The output folder that jobs.score wrote to."""
    inventory: str = ""
    """The inventory file that was scored; default: its location when it was scored."""
    model: str = ""
    """The folder of the model that scored it; default: OUT/models/<model_id>, if it exists."""
    map_sample: float = 1.0
    """Share of the maps that are read, chosen by a hash of the image ids. 1 = all."""
    versions: bool = True
    """Also compare the versions of all images with the files in the archive."""
    content_sample: float = 0.01
    """Share of the unchanged images that are read and whose bytes are compared with the hash in
    their row, chosen by a hash of the image ids, but about 100 at least. 0 = none, 1 = all."""

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        for name in ("map_sample", "content_sample"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise SettingError(f"{name} {share} must lie between 0 and 1")


def main(argv: Sequence[str]) -> int:
    """Check a run."""
    settings, _ = entry.parse(Settings, __doc__, argv, words=("run",))
    entry.check_access(settings)
    out = Out(settings.out)
    record = run_records.recorded(out, settings.run)
    run_id = settings.run or str(record["run_id"])
    run = RunUnderCheck(
        out,
        run_id,
        record,
        settings.inventory or str(record.get("inventory")),
        _card(settings.model, out, str(record.get("model_id"))),
    )
    with Progress() as progress:
        sample = settings.content_sample if settings.versions else None
        findings = verify.check(run, settings.map_sample, progress, sample)
    for violation in findings.violations.values():
        echo(f"broken: {violation.rule}")
        for value in violation.examples:
            echo(f"  found:  {printable(value)}")
        if violation.count > len(violation.examples):
            echo(f"  found:  {violation.count - len(violation.examples)} more like these")
        echo(f"  remedy: {violation.remedy}")
    if sentence := _archive_summary(findings):
        echo(sentence)
    if findings.decisions:
        unknown = findings.decisions_unknown
        of_none = f"; {unknown:,} of them are of runs or images that are not known" * bool(unknown)
        echo(f"decisions of people: {findings.decisions:,}{of_none}")
    echo(_summary(run_id, findings))
    return 1 if findings.violations else 0


def _card(model: str, out: Out, model_id: str) -> ModelCard | None:
    """The card of the model that was named, or else of the run's model if it is below OUT."""
    if model:
        return read_card(model)
    folder = out.model(model_id)
    exists = files.exists(files.join(folder, paths.MODEL_CARD))
    return read_card(folder) if exists else None


def _archive_summary(findings: Findings) -> str:
    """What became of the images' files; empty if no version could be compared."""
    states = {state: count for state, count in findings.files.items() if state != "unknown"}
    if not states:
        return ""
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    due = "; the next night scores what has changed" if states.get("changed") else ""
    return f"in the archive, images are now: {counts}{due}; {findings.hashed} were read and hashed"


def _summary(run_id: str, findings: Findings) -> str:
    maps = (
        f"all {findings.maps_named} maps"
        if findings.maps_read == findings.maps_named
        else f"{findings.maps_read} of {findings.maps_named} maps, chosen by a hash of their ids,"
    )
    if count := len(findings.violations):
        rules = f"{count} rule{'s' * (count > 1)}"
        return f"run {run_id} breaks {rules}; {findings.images} rows and {maps} were read"
    return (
        f"run {run_id} is complete: {findings.images} images with one valid row each; "
        f"{maps} were read and are valid"
    )


if __name__ == "__main__":
    entry.start(main)
