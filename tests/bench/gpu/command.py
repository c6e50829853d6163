"""The command line of the check of a GPU.

python -m tests.bench gpu --prepare FOLDER       makes the bundle, on a machine with everything
python -m tests.bench gpu --bundle FOLDER        runs the check, within eight minutes
python -m tests.bench gpu --bundle FOLDER --ray auto                  on a node of a Ray cluster
python -m tests.bench gpu --bundle FOLDER --device cpu --budget 900   tries it without a GPU

The machine that runs it needs torch, torchvision, pyarrow, scipy, Pillow, safetensors and this
tree; timm is used if it is there. Results lie in `--out`: results.json and results.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.bench.gpu import runner


def main(argv: Sequence[str]) -> int:
    """Prepare, or run all parts; 1 if a check failed."""
    parser = argparse.ArgumentParser(
        "python -m tests.bench gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prepare", type=Path, metavar="FOLDER")
    parser.add_argument("--bundle", type=Path, default=Path(".gpu-check"), metavar="FOLDER")
    parser.add_argument("--ray", metavar="ADDRESS", help="run on a node of this cluster")
    parser.add_argument("--out", type=Path, default=Path("out/gpu-check"), metavar="FOLDER")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=470, help="seconds for all parts")
    parser.add_argument("--parts", default=",".join(runner.PARTS), help="comma-separated")
    parser.add_argument("--part", choices=runner.PARTS, help="one part, in this process")
    parser.add_argument("--seconds", type=float, default=1e6, help="of that part")
    chosen = parser.parse_args(argv)
    if chosen.prepare:
        from tests.bench.gpu.prepare import prepare

        size = prepare(chosen.prepare)
        print(f"{chosen.prepare} has {size / 1e6:.1f} MB")
        return 0
    if chosen.part:
        chosen.out.mkdir(parents=True, exist_ok=True)
        runner.run_part(chosen.part, chosen.bundle, chosen.out, chosen.device, chosen.seconds)
        return 0
    parts = chosen.parts.split(",")
    if chosen.ray:
        from tests.bench.gpu.cluster import run_on_cluster

        run_on_cluster(chosen.ray, chosen.bundle, chosen.out, chosen.budget, parts)
        print((chosen.out / runner.TABLE).read_text())
        return 0
    figures = runner.run_all(chosen.bundle, chosen.out, chosen.device, chosen.budget, parts)
    return int(any(figure["right"] is False for figure in figures))
