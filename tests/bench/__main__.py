"""Runs benchmarks and prints their results as one Markdown table.

`make bench` or `python -m tests.bench` runs those of `DEFAULT`; `python -m tests.bench coreset
chain` runs some of them. `backbones`, `detail`, `glance`, `shots`, `boards`, `board_picture`,
`scaling`, `large`, and `rows` and `saturation`, which start Ray, run only by name. So do `gpu`,
`tiles`, `loop` and `holdout`, which have command lines of their own:
`python -m tests.bench tiles --help`.
"""

from __future__ import annotations

import datetime
import importlib
import platform
import subprocess
import sys

import torch

from tests.bench.measure import Row

DEFAULT = ("coreset", "neighbours", "chain", "workers", "memory")


def line(row: Row) -> str:
    """One row of the table as Markdown."""
    seconds = f"{row.seconds.cpu:.3g} | {row.seconds.wall:.3g}" if row.seconds else " | "
    return f"| {row.what} | {row.figure} | {row.target} | {seconds} | {row.note} |"


def main(names: list[str]) -> None:
    """Run benchmarks by name and print each row when it is known."""
    from tests.bench import features

    torch.set_num_threads(1)
    processor = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    model = next((x for x in processor.splitlines() if "Model name" in x), platform.processor())
    print(f"{datetime.date.today()}, {model.split(':')[-1].strip()}, one thread, torch", end=" ")
    print(f"{torch.__version__}; features of {features.source()}\n")
    print("| what | figure | at least | CPU s | wall s | |\n|---|---|---|---|---|---|")
    for name in names or DEFAULT:
        for row in importlib.import_module(f"tests.bench.{name}").rows():
            print(line(row), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:  # runs where little else is installed
        from tests.bench.gpu.command import main as gpu

        sys.exit(gpu(sys.argv[2:]))
    if sys.argv[1:] and sys.argv[1] in ("tiles", "loop", "holdout"):
        sys.exit(importlib.import_module(f"tests.bench.{sys.argv[1]}").main(sys.argv[2:]))
    main(sys.argv[1:])
