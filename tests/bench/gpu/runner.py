"""Runs the parts, each in a process of its own with its share of the time, and writes the results.

A part that hangs is ended, and one that crashes leaves the device to the next. What it had found is
kept, as every figure is written at once.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.bench.gpu.bare import make_importable
from tests.bench.gpu.bundle import Bundle
from tests.bench.gpu.part import Check, Figure

#: Part -> seconds that it may take. A part that needs less leaves the rest to the last ones.
PARTS = {
    "ceilings": 25,
    "slots": 30,
    "search": 50,
    "scoring": 105,
    "examples": 75,
    "fits": 60,
    "network": 70,
    "decoding": 35,
    "graphs": 60,
}
_END = 4.0  # seconds in which a part ends by itself, before it is ended
RESULTS, TABLE = "results.json", "results.md"


def run_part(name: str, bundle: Path, out: Path, device: str, seconds: float) -> None:
    """Run one part in this process; each figure becomes a line of a file as it is found."""
    deadline = time.monotonic() + seconds - _END
    make_importable(bundle)
    part = importlib.import_module(f"tests.bench.gpu.{name}")
    with (out / f"{name}.jsonl").open("w") as file:
        for figure in part.run(Check(Bundle(bundle), device, deadline)):
            print(as_line(name, asdict(figure)), flush=True)
            file.write(json.dumps(asdict(figure)) + "\n")
            file.flush()


def run_all(
    bundle: Path, out: Path, device: str, budget: float, parts: list[str]
) -> list[dict[str, Any]]:
    """Run parts within `budget` seconds; returns all figures, each with its part."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + budget
    figures: list[dict[str, Any]] = []
    about = surroundings(device)
    for number, name in enumerate(parts):
        later = sum(PARTS[other] for other in parts[number + 1 :])
        left = end - time.monotonic()
        seconds = min(left, max(PARTS[name], left - later))
        figures += _in_process(name, bundle, out, device, seconds)
        write(out, about, figures)
    return figures


def _in_process(
    name: str, bundle: Path, out: Path, device: str, seconds: float
) -> list[dict[str, Any]]:
    """The figures of a part that runs in a process of its own; the last one says how it ended."""
    start = time.monotonic()
    lines = out / f"{name}.jsonl"
    lines.unlink(missing_ok=True)
    ended = "no time left"
    if seconds > 2 * _END:
        command = [sys.executable, "-m", "tests.bench", "gpu", "--part", name]
        command += ["--bundle", str(bundle), "--out", str(out), "--device", device]
        command += ["--seconds", str(seconds)]
        errors = out / f"{name}.err"
        with errors.open("w") as file:
            process = subprocess.Popen(command, stderr=file)
            try:
                code = process.wait(seconds)
                last = errors.read_text().strip().splitlines()[-1:] if code else []
                ended = f"failed: {last[0][:300] if last else code}" if code else ""
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                ended = f"ended after {seconds:.0f} s"
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    took = asdict(Figure("the part", time.monotonic() - start, "s", ended, not ended))
    return [{"part": name} | figure for figure in [*found, took]]


def surroundings(device: str) -> dict[str, Any]:
    """Card, processor, versions and date."""
    about: dict[str, Any] = {
        "date": str(datetime.date.today()),
        "device": "cpu",
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.startswith("cuda"):
        about["device"] = torch.cuda.get_device_name()
        about["memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return about


def write(out: Path, about: dict[str, Any], figures: list[dict[str, Any]]) -> None:
    """Write the results as JSON, and as a table for docs/benchmarks.md."""
    content = json.dumps({"about": about, "figures": figures}, indent=1)
    (out / RESULTS).write_text(content)
    wrong = sum(figure["right"] is False for figure in figures)
    checks = sum(figure["right"] is not None for figure in figures)
    head = f"Measured on {about['date']}: {about['device']}, {about['processors']} CPU cores, "
    head += f"torch {about['torch']}. {checks - wrong} of {checks} checks passed."
    if about["device"] == "cpu":
        head += " A trial of the check on a CPU: nothing here was measured on a GPU."
    lines = ["| part | what | figure | check | |", "|---|---|---|---|---|"]
    lines += [as_line(figure["part"], figure) for figure in figures]
    (out / TABLE).write_text("\n".join([head, "", *lines, ""]))


def as_line(part: str, figure: dict[str, Any]) -> str:
    """A figure as a row of the table."""
    value = "" if figure["value"] is None else f"{figure['value']:.4g} {figure['unit']}".strip()
    right = {None: "", True: "passed", False: "FAILED"}[figure["right"]]
    what, note = (figure[key].replace("|", "/") for key in ("what", "note"))
    return f"| {part} | {what} | {value} | {right} | {note} |"
