"""How many images a second the processors decode, and how many maps they draw, beside the GPU."""

from __future__ import annotations

import io
import multiprocessing
import os
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ops.images.decode import DecodeSettings, decode
from ops.images.resize import InputSettings, geometry, resize
from ops.results import anomaly_map, map_png
from ops.results.anomaly_map import Scale
from tests.bench.gpu.bundle import SIZE
from tests.bench.gpu.part import Check, Figure

_files: list[bytes] = []


def _read(count: int) -> None:
    for number in range(count):
        resize(decode(_files[number % len(_files)], DecodeSettings()), InputSettings(SIZE))


def _draw(count: int) -> None:
    grid = np.random.default_rng(0).random((28, 28), dtype=np.float32)
    where = geometry(SIZE, SIZE, InputSettings(SIZE))
    for _ in range(count):
        values = anomaly_map.upsample(grid, (SIZE, SIZE), 4.0)
        map_png.encode(values, Scale(0.0, 1e-4), where, "0" * 32)


def as_files(check: Check, side: int, kind: str) -> list[bytes]:
    """Some images of the bundle, enlarged to a side and encoded."""
    out = []
    for data in check.bundle.files[:8]:
        file = io.BytesIO()
        with Image.open(io.BytesIO(data)) as image:
            image.convert("RGB").resize((side, side)).save(file, kind)
        out.append(file.getvalue())
    return out


def run(check: Check) -> Iterator[Figure]:
    """Kinds of files and numbers of processes. Forked before this process uses the device."""
    most = min(16, os.cpu_count() or 1)
    sides = check.size((256, 1024), (256,))
    inputs = {
        f"{kind} of {side} px": as_files(check, side, kind)
        for kind in ("JPEG", "PNG")
        for side in sides
    }
    for processes in sorted({1, most}):
        for name, files in (*inputs.items(), ("", [])):
            if not check.left(6):
                yield Figure(f"{name or 'maps'}, {processes} processes", note="no time left")
                continue
            _files[:] = files
            what = f"decode and resize {name}" if files else "up-sample and encode maps"
            rate = _rate(_read if files else _draw, processes, check.size(2.0, 0.2))
            yield Figure(f"{what}, {processes} processes", rate, "images/s")


def _rate(work, processes: int, seconds: float) -> float:
    """Items a second of all processes together, each with a share that takes about `seconds`."""
    start = time.perf_counter()
    work(2)
    each = max(2, int(2 * seconds / (time.perf_counter() - start)))
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(work, [1] * processes, chunksize=1)
        start = time.perf_counter()
        pool.map(work, [each] * processes, chunksize=1)
        return processes * each / (time.perf_counter() - start)
