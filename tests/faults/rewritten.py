"""What a rewritten archive costs: `python -m tests.faults rewritten 10000 10`.

Three nights over one tar of small pictures, as processes: the first scores all of them; before the
second the tar is written anew in its place, with its old times, and so many members are other
pictures; the third finds nothing to do.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from ops.detectors.model_folder import write_model
from tests.conftest import LOOPBACK_ONLY, ROOT, tiny_model
from tests.faults.memory import SLOTS, draw


def rewrite(file: Path, changed: int) -> None:
    """Write a tar anew with its old size and times; the first `changed` members have one other
    byte of their pixels."""
    times, out = file.stat(), io.BytesIO()
    with tarfile.open(file) as old, tarfile.open(fileobj=out, mode="w") as new:
        for number, member in enumerate(old.getmembers()):
            data = bytearray(old.extractfile(member).read())
            data[-1] ^= 255 if number < changed else 0
            new.addfile(member, io.BytesIO(data))
    file.write_bytes(out.getvalue())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size


def night(folder: Path) -> tuple[float, dict]:
    """Run a night; its seconds and its record."""
    environment = os.environ | LOOPBACK_ONLY | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    words = ["--archive", folder / "parts", "--model", folder / "model", "--out", folder / "out"]
    command = [sys.executable, "-m", "jobs.nightly", *map(str, words), "--maps", "none", *SLOTS]
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    record = max((folder / "out" / "nights").iterdir())
    return seconds, json.loads(record.read_text())


def main(words: list[str]) -> None:
    """Rewrite a tar of so many (10,000) members of which so many (10) change."""
    count, changed = (int(word) for word in [*words, *("10000", "10")[len(words) :]])
    print("| night | new | changed | scored | copied | seconds |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as name:
        folder = Path(name)
        (folder / "parts").mkdir()
        draw(folder / "parts", count)
        (archive,) = (folder / "parts").iterdir()
        write_model(str(folder / "model"), tiny_model("parts"))
        expected = [(count, 0, count, 0), (0, count, changed, count - changed), (0, 0, 0, 0)]
        for number, counts in enumerate(expected):
            seconds, record = night(folder)
            totals = record.get("totals", {"images": 0, "copied": 0})
            scored = totals["images"] - totals["copied"]
            found = (record["new"], record["changed"], scored, totals["copied"])
            print(f"| {number + 1} | {' | '.join(map(str, found))} | {seconds:.1f} |", flush=True)
            assert found == counts, (found, counts)
            if number == 0:
                rewrite(archive, changed)
