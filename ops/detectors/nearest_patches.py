"""The vectors of a model's bank that are nearest to one patch of a picture, with their origins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ops.detectors import bank_origins
from ops.detectors.loaded_model import LoadedModel, ModelTensors
from ops.detectors.model_card import ModelCard
from ops.detectors.model_tensors import read_backbone, read_detector
from ops.detectors.patchcore import PatchCore
from ops.errors import UserError
from ops.images.decode import Picture
from ops.images.inspection import InspectionMask
from ops.images.inspection_files import read_masks
from ops.images.packed_pixels import column
from ops.images.patch_grid import Box, PatchGrid
from ops.images.resize import InputSettings, pack, resize
from ops.storage import files, paths


class Near(NamedTuple):
    """A vector of a bank."""

    vector: int
    distance: float
    """Of the patch, in the metric of the detector."""
    origin: dict[str, Any] | None
    """Its row of `bank_origins.SCHEMA`; None if the model does not know it."""


class Found(NamedTuple):
    """The cell of a patch, and the vectors of the bank that are nearest to it, nearest first."""

    cell: Box
    near: list[Near]


class NearestPatches:
    """Searches the banks of a model folder. Detectors of up to `memory` bytes are kept.

    Raises UserError if the model has no bank whose origins are known.
    """

    def __init__(self, location: str, card: ModelCard, memory: int, threads: int) -> None:
        """Of an ensemble, the first member with a bank is searched."""
        torch.set_num_threads(threads)
        folder, self._card = _with_origins(location, card)
        place = files.join(folder, paths.ORIGINS)
        self._origins = bank_origins.from_bytes(files.read_bytes(place), self._card.model_id)
        self._tensors = _Folder(folder, self._card)
        self._model = LoadedModel(self._tensors, "cpu", memory, batch=1)

    def origin(self, detector: str, vector: int) -> dict[str, Any] | None:
        """Where a vector of a detector's bank is from, as a row of `bank_origins.SCHEMA`."""
        file = self._card.products[detector].file
        of_bank = pc.equal(self._origins["file"], file)
        rows = self._origins.filter(pc.and_(of_bank, pc.equal(self._origins["vector"], vector)))
        return rows.to_pylist()[0] if len(rows) else None

    @torch.inference_mode()
    def find(self, detector: str, picture: Picture, x: int, y: int, count: int) -> Found:
        """What is nearest to the patch at a pixel of a picture, which is seen as it is scored."""
        bank, settings = self._model.detector(detector), self._card.input
        assert isinstance(bank, PatchCore)
        size = picture.width, picture.height
        # The tile does not depend on the grid, which is known once its patches are.
        _, tile = PatchGrid(*size, settings, (1, 1)).at(x, y)
        row = _row(picture, settings, self._tensors.masks.get(detector))
        patches = bank.embed(self._model.image(detector, row, tile))[0]
        grid = PatchGrid(*size, settings, (patches.shape[0], patches.shape[1]))
        position, _ = grid.at(x, y)
        distances, vectors = bank.nearest(patches.flatten(0, 1)[position], count)
        near = [
            Near(vector, distance, self.origin(detector, vector))
            for vector, distance in zip(vectors.tolist(), distances.tolist(), strict=True)
        ]
        return Found(grid.box(position, tile), near)


class _Folder:
    """The tensors of a model folder, which are read when they are asked for."""

    members: Sequence[ModelTensors] = ()

    def __init__(self, location: str, card: ModelCard) -> None:
        self._location, self.card = location, card

    @cached_property
    def masks(self) -> Mapping[str, InspectionMask]:
        return read_masks(self._location, self.card.masks)

    def of_backbone(self) -> dict[str, Tensor]:
        return read_backbone(self._location, self.card)

    def of_product(self, product: str) -> dict[str, Tensor]:
        return read_detector(self._location, self.card, product)


def _with_origins(location: str, card: ModelCard) -> tuple[str, ModelCard]:
    """The folder and card of the model, or of its first member, that knows its bank's origins."""
    members = [(files.join(location, paths.member(n)), each) for n, each in enumerate(card.members)]
    for folder, each in members or [(location, card)]:
        if each.method == PatchCore.name and files.exists(files.join(folder, paths.ORIGINS)):
            return folder, each
    raise UserError(
        "the model does not know which good pictures its bank is from: only banks of patchcore do, "
        f"by {paths.ORIGINS} in the model folder; restore that file, or fit the model again"
    )


def _row(picture: Picture, settings: InputSettings, mask: InspectionMask | None) -> pa.Table:
    """A table of one row, as `Read` makes it."""
    pixels = resize(mask.covered(picture) if mask else picture, settings)
    return pa.table(
        {
            "width": [picture.width],
            "height": [picture.height],
            "bit_depth": [picture.bit_depth],
            "channels": [1 if pixels.ndim == 2 else 3],
            "pixels": column([pack(pixels)]),
        }
    )
