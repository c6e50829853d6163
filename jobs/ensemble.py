r"""Make one model of several that were fitted on the same images, calibrate and register it.

python -m jobs.ensemble --models '["out/models/4f2a", "out/models/9c31"]' \
    --inventory tiles.parquet --out out
python -m jobs.ensemble --models '["models:/wide@champion", "models:/dense@champion"]' \
    --inventory tiles.parquet --out out --combine smallest_p

The images that were held out of the fits are scored by each model, so the inventory must be theirs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from jobs import fit
from jobs.cli import entry, locations, new_model, sources
from jobs.cli.console import Progress
from jobs.cli.fit_warnings import FitWarnings
from jobs.tracking.tracker import Tracker
from ops.archives.fetch import FetchSettings
from ops.detectors.ensemble import EnsembleSettings, check_members
from ops.results import false_alarm_rates
from ops.storage.paths import Out
from pipelines.cluster.connection import connected
from pipelines.cluster.resources import Resources
from pipelines.fitting.ensemble import EnsembleRequest, ensemble


@dataclass(frozen=True)
class Settings(EnsembleSettings, sources.Listing):
    """Settings of jobs.ensemble."""

    models: list[str] = field(default_factory=list)
    """The members, two or more: model folders (paths or s3:// URIs) or models:/name@alias, as
    '["a", "b"]'. Their copies are part of the ensemble."""
    inventory: str = ""
    """The inventory file that the members were fitted with, instead of an archive."""
    out: str = "out"
    """The output folder; a path or s3:// URI."""
    model_folder: str = ""
    """The folder of the ensemble, a path or s3:// URI; default: OUT/models/<model_id>."""
    false_alarm_rate: float = 0.01
    """Share of good images that may be called anomalous; it sets each product's threshold."""
    name: str = "nightloupe"
    """Name of the model in the MLflow registry; empty = do not register."""
    alias: str = ""
    """Alias in the registry that is moved to the ensemble; default: champion, or challenger if
    champion is another model (see jobs.promote)."""
    fail_on_warning: bool = False
    """Exit with 3 if the job is done and warned."""
    cluster: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else one is started for the job."""
    fetch: FetchSettings = field(default_factory=FetchSettings)
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        super().__post_init__()
        false_alarm_rates.check(self.false_alarm_rate)


def main(argv: Sequence[str]) -> int:
    """Make an ensemble."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    sources.check(settings.inventory, settings)
    places = [
        place if place.startswith("models:/") else locations.checked("models", place)
        for place in settings.models
    ]
    entry.check_access(settings)
    out, tracker = Out(settings.out), Tracker(settings.out)
    request = EnsembleRequest(
        EnsembleSettings(settings.sigma, settings.combine),
        settings.false_alarm_rate,
        settings.fetch,
    )
    with (
        fit.reserved(settings.model_folder) as check_lock,
        tracker.run("ensemble", asdict(settings)) as record,
        contextlib.ExitStack() as opened,
    ):
        warnings = FitWarnings()
        members = [opened.enter_context(tracker.opened(place)) for place in places]
        check_members([member.card for member in members])
        with Progress() as progress, connected(settings.cluster):
            inventory = sources.inventory_of(settings.inventory, settings, out, progress)
            model = ensemble(members, inventory, request, settings.resources, progress)
        check_lock()
        location = settings.model_folder or out.model(model.card.model_id)
        new_model.keep(model, location, record, warnings)
        new_model.register(model, settings.name, settings.alias, tracker, record)
    return entry.WARNED if warnings.sentences and settings.fail_on_warning else 0


if __name__ == "__main__":
    entry.start(main)
