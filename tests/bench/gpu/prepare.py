"""Makes the bundle: images, weights, FrEIA, small detectors of every kind, fitted on the CPU."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from ops.detectors.detector import Checkpoint, settings_from
from ops.detectors.registry import detector_class
from ops.distributed import Alone
from ops.features.backbone import Backbone, BackboneSettings
from ops.features.weights import load_weights
from tests.bench import features
from tests.bench.gpu.bundle import CONTENT, WEIGHTS, Bundle, Example, thinned

GOOD, DEFECTIVE, FITTED, SCORED = 48, 16, 12, 4

_FLOW = {"blocks": 2, "epochs": 1, "batch": 4}


class Recipe(NamedTuple):
    """How an example is fitted: method, layers, settings."""

    method: str
    layers: str
    settings: dict[str, Any]


#: Small examples: their states and scores together take some ten megabytes.
RECIPES = {
    "patchcore": Recipe(
        "patchcore", "features.7,features.10", {"embedding": "concat", "coreset_ratio": 0.08}
    ),
    "patchcore-pooled": Recipe(
        "patchcore", "features.7,features.10", {"dim": 128, "coreset_ratio": 0.1}
    ),
    "patchcore-whitened": Recipe(
        "patchcore",
        "features.10",
        {"embedding": "concat", "metric": "whitened", "coreset_ratio": 0.2},
    ),
    "spade": Recipe("spade", "features.10,features.12", {"retrieved": 5}),
    "spade-concat": Recipe(
        "spade",
        "features.10,features.11,features.12",
        {"retrieved": 5, "pyramid": "concat", "float16": True},
    ),
    "padim": Recipe("padim", "features.7,features.10", {"dim": 32}),
    "differnet": Recipe(
        "differnet",
        "features.12",
        {"blocks": 2, "hidden": 64, "scales": 2, "views": 4, "score_transforms": 4, "epochs": 4},
    ),
    "fastflow": Recipe("fastflow", "features.10", _FLOW | {"hidden": 0.1}),
    "cflow": Recipe(
        "cflow",
        "features.7",
        _FLOW | {"condition": 16, "mixing": "hard", "fibers": 256},
    ),
    "csflow": Recipe("csflow", "features.7", _FLOW | {"scales": 2, "hidden": 16}),
    "ssnf": Recipe("ssnf", "features.10", _FLOW | {"hidden": 16, "heads": 1}),
    "glance": Recipe(
        "glance",
        "features.7,features.12",
        {"patch": 32, "stride": 16, "width": 16, "dim": 16, "epochs": 1, "local_epochs": 1},
    ),
}


def prepare(folder: Path) -> int:
    """Write the bundle; returns its bytes."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = _copy_images(folder)
    weights = str(features.WEIGHTS) if features.WEIGHTS.exists() else "random"
    save_file(load_weights(weights, "squeezenet1_1", 0), folder / WEIGHTS)
    freia = importlib.util.find_spec("FrEIA")
    assert freia
    assert freia.origin
    shutil.copytree(
        Path(freia.origin).parent,
        folder / "site" / "FrEIA",
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    content = {"images": names, "source": features.source(), "torch": torch.__version__}
    (folder / CONTENT).write_text(json.dumps(content | {"examples": []}))
    examples = [fit_example(name, folder) for name in RECIPES]
    (folder / CONTENT).write_text(json.dumps(content | {"examples": examples}, indent=1))
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _copy_images(folder: Path) -> list[str]:
    """Copy good images, then defective ones; returns their names."""
    defects = sorted((features.DATA / "mtd").glob("MT_[!F]*/Imgs/*.jpg"))
    good = features.images()
    chosen = good[:: max(1, len(good) // GOOD)][:GOOD]
    chosen += defects[:: max(1, len(defects) // DEFECTIVE)][:DEFECTIVE]
    names = []
    for number, path in enumerate(chosen):
        names.append(f"{number:02d}{path.suffix}")
        shutil.copy(path, folder / "images" / names[-1])
    return names


def fit_example(name: str, folder: Path) -> dict[str, Any]:
    """Fit an example, score some images, and write both; returns its entry of the content."""
    method, layers, values = RECIPES[name]
    bundle = Bundle(folder)
    images = bundle.images()
    kind = detector_class(method)
    settings = settings_from(kind.Settings, values)
    backbone = Backbone(BackboneSettings("squeezenet1_1", layers, bundle.weights))
    detector = kind(settings, backbone)
    for row in range(min(FITTED, len(images))):
        detector.add_images(images[row : row + 1], torch.tensor([row]))
        detector.exchange(Alone())
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    state = {key: tensor.contiguous() for key, tensor in detector.state().items()}
    save_file(state, folder / f"{name}.state.safetensors")
    scored = [*range(FITTED, FITTED + SCORED), *range(len(images) - SCORED, len(images))]
    scores = detector.score(images[scored])
    tensors = {"image": scores.image.contiguous(), "map": thinned(scores.map)}
    save_file(tensors, folder / f"{name}.scores.safetensors")
    entry = asdict(Example(name, method, asdict(settings), layers, scored, folder))
    del entry["folder"]
    return entry
