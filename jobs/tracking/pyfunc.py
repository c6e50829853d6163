"""A registered model as an MLflow pyfunc: locations and products in, scores out.

python -c "import mlflow; print(mlflow.pyfunc.load_model('models:/nightloupe@champion').metadata)"

Run it in the root of the project. The registered model refers to this module; it contains no
pickled code, and its tensors are safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from torch import Tensor

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA
from ops.detectors.loaded_model import ModelTensors
from ops.detectors.model_card import ModelCard, ProductCard
from ops.detectors.model_folder import Model, read_model
from ops.detectors.score_images import ScoreImages
from ops.images.inspection import InspectionMask
from ops.images.read_images import Read
from ops.plain_text import in_markdown
from ops.storage import uris
from ops.storage.paths import HELD_OUT, INSPECTED, SYNTHETIC, picture_kind

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the result.
ANSWER = ("uri", "product", "status", "reason", "score", "p_value", "is_anomalous")
#: What the pictures of a model folder show, by kind.
_SHOWN = {
    HELD_OUT: "the good images held out of the fit that score highest; below, where in each",
    INSPECTED: "a good image; what is inspected is outlined, what is not is dark",
    SYNTHETIC: "good images, and below what synthetic defects made of them",
}
#: Characters of a page; a database refuses more than 5,000.
_LONGEST = 4900
_MORE = "\n... and {} more products, whose cards are in model.json"


@dataclass(frozen=True)
class _Held:
    """A model whose tensors are in this process."""

    model: Model

    @property
    def card(self) -> ModelCard:
        return self.model.card

    @property
    def masks(self) -> Mapping[str, InspectionMask]:
        return self.model.masks

    @property
    def members(self) -> Sequence[ModelTensors]:
        return [_Held(member) for member in self.model.members]

    def of_backbone(self) -> dict[str, Tensor]:
        return self.model.backbone

    def of_product(self, product: str) -> dict[str, Tensor]:
        return self.model.products[product]


class PyfuncModel:
    """Scores images by location: one row per image, in order, also for failed images."""

    def __init__(self, model: Model) -> None:
        card = model.card
        self._read = Read(
            card.input,
            card.decode,
            FetchSettings(),
            set(card.products),
            depths=card.bit_depths,
            views=card.views,
            masks=model.masks,
            further=card.inputs[1:],
        )
        self._detect = ScoreImages(_Held(model))

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002 - as MLflow calls it
        """Scores of images whose `location` (a path or s3:// URI) and `product` the rows tell.

        Models with separate views need a column `view`, too.
        """
        views = data["view"] if "view" in data else [None] * len(data)
        rows = [
            {"uri": uris.make(location), "product": product, "view": view}
            for location, product, view in zip(
                data["location"], data["product"], views, strict=True
            )
        ]
        asked = pa.Table.from_pylist(rows, SCHEMA)
        pieces = self._read.pieces(asked) if self._detect.tiled else [self._read(asked)]
        found = [self._detect(piece).select(ANSWER) for piece in pieces]
        return pa.concat_tables(found).to_pandas()


def _load_pyfunc(path: str) -> PyfuncModel:
    """What MLflow calls; the name is its."""
    return PyfuncModel(read_model(path))


def describe(folder: str) -> None:
    """Write the file `MLmodel` into a model folder."""
    from mlflow import pyfunc  # noqa: PLC0415 - takes seconds, and few jobs need it
    from mlflow.models import Model as Described  # noqa: PLC0415
    from mlflow.models import ModelSignature  # noqa: PLC0415
    from mlflow.types.schema import ColSpec, Schema  # noqa: PLC0415

    columns = [ColSpec("string", "location"), ColSpec("string", "product")]
    asked = Schema([*columns, ColSpec("string", "view", required=False)])
    described = Described(signature=ModelSignature(inputs=asked))
    pyfunc.add_to_model(described, loader_module="jobs.tracking.pyfunc", data=".")
    described.save(os.path.join(folder, "MLmodel"))


def page(model: Model) -> str:
    """What people read of a model in the registry, as Markdown."""
    card, rate = model.card, model.card.false_alarm_rate
    if card.members:
        head = [f"Ensemble, combined by `{card.settings['combine']}`; model `{card.model_id}`.", ""]
        head += [f"* {_described(member)}" for member in card.members]
    else:
        head = [_described(card)]
    head += [""]
    if model.pictures:
        kinds = sorted({picture_kind(file) for file in model.pictures})
        head += ["Pictures below `model/` in the artifacts of the run that fitted it:", ""]
        head += [f"* `*.{kind}.png`: {_SHOWN[kind]}" for kind in kinds] + [""]
    head += [
        f"| product | held out | threshold at a false-alarm rate of {rate:g} "
        "| rate it can promise |",
        "|---|---|---|---|",
    ]
    lines = [_line(name, product, rate) for name, product in sorted(card.products.items())]
    room = _LONGEST - len("\n".join(head)) - len(_MORE)
    fitting = sum(length <= room for length in accumulate(len(line) + 1 for line in lines))
    rest = [_MORE.format(len(lines) - fitting)] if fitting < len(lines) else []
    return "\n".join(head + lines[:fitting] + rest)


def _described(card: ModelCard) -> str:
    return (
        f"Detector `{card.method}` on `{card.backbone.name}` ({card.backbone.layers}), "
        f"weights `{card.backbone.weights}`, "
        f"{'tiles' if card.input.tiled else 'pictures'} of {card.input.size} px; "
        f"model `{card.model_id}`."
    )


def _line(name: str, product: ProductCard, rate: float) -> str:
    known = product.calibration
    told = (known.threshold(rate), known.promised_rate(rate))
    cells = ["-" if value is None else f"{value:.4g}" for value in told]
    return f"| {in_markdown(name)} | {len(known.scores):,} | {cells[0]} | {cells[1]} |"
