"""Peak memory of a fit that may hold 1 GiB of patches, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ops.detectors.detector import Checkpoint
from ops.detectors.patchcore import PatchCore, PatchCoreSettings
from ops.distributed import Alone
from tests.bench import features
from tests.bench.chain import INPUT, LAYERS
from tests.bench.measure import Row

PATCHES, MEMORY = 550_000, 2**30


def peak() -> float:
    """Peak memory of this process in GiB."""
    # getrusage would include the memory of the parent before the fork.
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in status if x.startswith("VmHWM")).split()[1]) / 2**20


def fit(memory: int) -> None:
    """Fit, and print the memory before, the peak, and the metrics of the coreset."""
    from ops.archives.fetch import FetchSettings
    from ops.detectors.image_batches import to_images
    from ops.images.decode import DecodeSettings
    from ops.images.read_images import Read

    torch.set_num_threads(1)
    settings = PatchCoreSettings(embedding="concat", fit_memory=memory)
    detector = PatchCore(settings, features.backbone(LAYERS))
    read = Read(INPUT, DecodeSettings(), FetchSettings(), threads=1)
    images = features.images()
    detector.embed(to_images(read(features.rows_of(images[:1])), INPUT, "cpu"))
    before = peak()
    count = number = 0
    while count < PATCHES:
        table = features.rows_of([images[number % len(images)]])
        image = to_images(read(table), INPUT, "cpu")
        detector.add_images(image, torch.tensor([number]))
        number += 1
        count += detector.embed(image).shape[1] ** 2 if number == 1 else count // (number - 1)
    fitted = detector.fit(Alone(), lambda *_: None, Checkpoint())
    metrics = fitted.counts.as_metrics() | fitted.fit_metrics
    names = ("patches", "bank", "radius", "local_r", "union_r", "factor")
    print(before, peak(), *(metrics[name] for name in names))


def rows() -> Iterator[Row]:
    """A fit with bounded memory, and one that holds all patches."""
    for memory in (MEMORY, 0):
        code = f"from tests.bench.memory import fit; fit({memory})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        before, most, *metrics = map(float, done.stdout.split())
        patches, bank, radius, local, union, factor = metrics
        name = "1 GiB" if memory else "all patches held"
        note = (
            f"bank {bank:.0f}; radius {radius:.1f} = {local:.1f} + {union:.1f}, factor {factor:.2f}"
        )
        yield Row(
            f"fit of {patches:,.0f} patches, {name}: memory beyond the backbone's {before:.2f} GiB",
            f"{most - before:.2f} GiB",
            None,
            "1 GiB" if memory else "",
            note,
        )
