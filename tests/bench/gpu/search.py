"""Whether nearest neighbours on the device are those of the CPU, value and row, and how fast."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ops.search.neighbours import Bank
from tests.bench.gpu.part import Check, Figure

IMAGE = 784  # patches


def queries(check: Check) -> Tensor:
    """Patches of the last images of the bundle, which are defective and in no bank, on the CPU."""
    return check.bundle.patches[-check.size(16, 2) * IMAGE :]


def run(check: Check) -> Iterator[Figure]:
    """Banks of two sizes, searched image by image and all at once."""
    x = queries(check)
    known = check.bundle.patches[: -16 * IMAGE]
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
    for size in check.size((5_000, 20_000), (500,)):
        vectors = known[order[:size]].contiguous()
        cpu, device = Bank(vectors), Bank(vectors.to(check.device))
        expected = cpu.nearest(x)
        on_device = x.to(check.device)
        for name, parts in (
            ("image by image", on_device.split(IMAGE)),
            ("all at once", (on_device,)),
        ):
            found = [device.nearest(part) for part in parts]
            value = torch.cat([each.value for each in found]).cpu()
            row = torch.cat([each.row for each in found]).cpu()
            for what, same in (
                ("distances", value == expected.value),
                ("rows", row == expected.row),
            ):
                note = f"{int((~same).sum())} of {len(x)} differ" if not bool(same.all()) else ""
                right = bool(same.all())
                yield Figure(f"bank {size}, {name}: {what} of the CPU", note=note, right=right)
            if check.left(5):
                seconds = check.seconds(lambda: [device.nearest(p) for p in parts])  # noqa: B023
                each = seconds / len(x) * IMAGE
                yield Figure(f"bank {size}, {name}: an image", each * 1e3, "ms")
