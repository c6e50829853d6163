"""Estimate a fit without running it: images, patches, memory, minutes and the model's size.

python -m jobs.plan --inventory mvtec.parquet --method patchcore --patchcore.coreset_ratio 0.1
python -m jobs.plan --archive s3://bucket/parts --pattern "{product}/{name}" --resources.workers 8

It takes the settings of jobs.fit. With GPUs (--resources.gpus) it measures where a worker would
run. If nodes or GPUs have too little memory for the fit, it names the settings to change and exits
with 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jobs import fit
from jobs.cli import entry, sources
from jobs.cli.console import Progress, echo
from jobs.cli.detail_seen import detail_seen
from jobs.tracking.tracker import Tracker
from ops.detectors.registry import DETECTORS
from ops.features.backbone import Backbone
from ops.images.inspection import InspectionMask
from ops.plain_text import printable
from ops.storage.paths import Out
from pipelines.cluster.connection import connected
from pipelines.fitting import plan
from pipelines.fitting.alignment import misplaced, placement_matters
from pipelines.fitting.also_whole import whole
from pipelines.fitting.choose_input import NetworkInput, choose_input
from pipelines.fitting.compare_inputs import Compared, compare_inputs, name_of
from pipelines.fitting.decided import choose
from pipelines.fitting.inspection import masks_of
from pipelines.fitting.picture_sizes import read_sizes
from pipelines.fitting.plan import Plan
from pipelines.fitting.rehearsal import Rehearsal, rehearse_on_worker


def main(argv: Sequence[str]) -> int:
    """Estimate a fit."""
    groups = {name: kind.Settings for name, kind in DETECTORS.items()}
    settings, methods = entry.parse(fit.Settings, __doc__, argv, groups)
    if settings.needs_images:
        sources.check(settings.inventory, settings)
    fit.check_masks(settings)
    fit.check_whole(settings)
    entry.check_access(settings)
    with (
        fit.model_to_grow(settings, Tracker(settings.out)) as grown,
        Progress() as progress,
        connected(settings.cluster),
    ):
        request = fit.request_of(settings, methods[settings.method], grown)
        inventory = None
        if settings.needs_images:
            out = Out(settings.out)
            inventory = sources.inventory_of(settings.inventory, settings, out, progress)
        chosen = choose(inventory, request, grown, settings.decided()).split
        request = replace(request, masks=masks_of(chosen, request, grown).by_detector)
        _print_masks(request.masks)
        backbone = Backbone(request.backbone.emulated, grown.backbone if grown else None)
        pictures = read_sizes(chosen, request, placement_matters(request))
        request, sentences = choose_input(request, backbone, pictures)
        planned = plan.of_fit(chosen, request, backbone, settings.resources, pictures)
        for sentence in [*sentences, *misplaced(pictures, request, planned.layers)]:
            echo(sentence)
        _print_summary(planned)
        for sentence in detail_seen(pictures.coarsest(request, planned.patches)):
            echo(sentence)
        plan.check(planned)
        measured = rehearse_on_worker(
            chosen.fit, request, planned.sizes, backbone, settings.resources
        )
        _print_gpu(planned, measured)
        planned.gpu.check(measured.gpu_bytes, measured.gpu_used, settings.resources.gpu_share)
        minutes = plan.minutes(planned, measured)
        size = max(pictures.medians.values(), key=math.prod, default=None)
        takes = NetworkInput.of(request, backbone)
        others = compare_inputs(request, takes, size, planned, measured) if size else []
        if settings.input.also == "whole" and request.input.tiled:
            echo("the same pictures as a whole (--input.also whole), fitted after the tiles:")
            second = plan.of_fit(chosen, whole(request), backbone, settings.resources, pictures)
            _print_summary(second)
            plan.check(second)
            echo("the minutes below are those of the tiles alone")
    echo(
        f"estimated minutes: {minutes.extract:.1f} to extract features, {minutes.fit:.1f} to fit, "
        f"{minutes.calibrate:.1f} to calibrate"
    )
    _print_inputs(others)
    return 0


def _print_inputs(compared: list[Compared]) -> None:
    """A table of inputs; that of the fit comes first."""
    if not compared:
        return
    width, height = compared[0].detail.size
    echo(f"inputs for pictures of {width:,} x {height:,}; the first is that of the fit:")
    echo(f"  {'input':<24}{'patches':>12}{'minutes':>10}{'smallest defect':>18}")
    for row in compared:
        smallest = f"{row.detail.patch:.0f} pixels"
        echo(f"  {name_of(row.input):<24}{row.patches:>12,}{row.minutes:>10.1f}{smallest:>18}")
    echo("minutes to extract features and to calibrate; a defect of a patch can still be found")


def _print_masks(masks: Mapping[str, InspectionMask]) -> None:
    for detector, mask in masks.items():
        echo(f"{printable(detector)}: {mask.share:.1%} of the picture is inspected")
    if masks:
        echo("what follows is estimated for whole pictures, so it is more than the fit will take")


def _tiles(planned: Plan, detector: str) -> str:
    tiles = planned.sizes[detector].images
    return f" in about {tiles:,} tiles" if tiles != planned.images[detector] else ""


def _print_summary(planned: Plan) -> None:
    for detector, estimate in planned.estimates.items():
        echo(
            f"{printable(detector)}: {planned.images[detector]:,} images{_tiles(planned, detector)}"
            f", {estimate.vectors:,} feature vectors, {estimate.kept:,} kept"
        )
    units = planned.held_out_units
    of_parts = f" of {units:,} parts" if units < planned.held_out else ""
    echo(f"{planned.held_out:,} images{of_parts} are held out for calibration")
    echo(
        f"memory of each of {planned.workers} workers: {_size(planned.fit_bytes)} to fit, "
        f"{_size(planned.score_bytes)} to score"
    )
    echo(f"size of the model: {_size(planned.model_bytes)}")


def _print_gpu(planned: Plan, measured: Rehearsal) -> None:
    if measured.gpu_bytes:
        echo(
            f"memory of a GPU of {_size(measured.gpu_bytes)} that each worker takes: "
            f"{_size(measured.gpu_used + planned.gpu.fit)} to fit, "
            f"{_size(measured.gpu_used + planned.gpu.score)} to score"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


if __name__ == "__main__":
    entry.start(main)
