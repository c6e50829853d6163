"""Say what a fit will take before it starts: images, patches, memory, minutes, the model's size.

python -m jobs.plan --inventory mvtec.parquet --method patchcore --patchcore.coreset_ratio 0.1
python -m jobs.plan --archive s3://bucket/parts --pattern "{product}/{name}" --resources.workers 8

Takes the settings of jobs.fit. Exits with 1 if the fit does not fit, and names what to change.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs import fit
from jobs.cli import entry, sources
from jobs.cli.console import Progress, echo
from jobs.tracking.tracker import Tracker
from ops.detectors.registry import DETECTORS
from ops.features.backbone import Backbone
from ops.storage.paths import Out
from pipelines.cluster.resources import connected
from pipelines.fitting import plan
from pipelines.fitting.plan import Plan
from pipelines.fitting.request import split


def main(argv: Sequence[str]) -> int:
    """Plan a fit."""
    groups = {name: kind.Settings for name, kind in DETECTORS.items()}
    settings, methods = entry.parse(fit.Settings, __doc__, argv, groups)
    sources.check(settings.inventory, settings)
    entry.check_access(settings)
    with (
        fit.model_to_grow(settings, Tracker(settings.out)) as grown,
        Progress() as progress,
        connected(settings.cluster),
    ):
        request = fit.request_of(settings, methods[settings.method], grown)
        out = Out(settings.out)
        inventory = sources.inventory_of(settings.inventory, settings, out, progress)
        chosen = split(inventory, request)
        backbone = Backbone(request.backbone, grown.backbone if grown else None)
        found = plan.of_fit(chosen, request, backbone, settings.resources)
        _print_summary(found)
        plan.check(found)
        expected = plan.minutes(found, chosen, request, backbone, settings.resources)
    echo(
        f"minutes: extract {expected.extract:.1f}, fit "
        f"{expected.fit:.1f}, calibrate {expected.calibrate:.1f}"
    )
    return 0


def _print_summary(found: Plan) -> None:
    for detector, estimate in found.estimates.items():
        echo(
            f"{detector}: {found.images[detector]} images, {estimate.vectors:,} vectors, "
            f"{estimate.kept:,} kept"
        )
    echo(f"{found.held_out} images held out for calibration")
    echo(
        f"each of {found.workers} workers: {_size(found.fit_bytes)} while fitting, "
        f"{_size(found.score_bytes)} while scoring"
    )
    echo(f"model: {_size(found.model_bytes)}")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


if __name__ == "__main__":
    entry.start(main)
