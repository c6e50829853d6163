"""Where the vectors of the banks of a fit are from, as the table that a model keeps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ops.detectors import bank_origins
from ops.detectors.detector import BankPicks
from ops.detectors.model_folder import Model
from ops.images.patch_grid import PatchGrid
from ops.images.resize import InputSettings
from ops.images.tiles import of_tile_id
from ops.storage.paths import JOINT, product_file
from pipelines.fitting.coordinator import Content
from pipelines.fitting.request import ALL, ROW

_OF_IMAGE = ("image_id", "uri", "bytes", "member", "product")
Origin = dict[str, Any]


def kept(
    fitted: pa.Table,
    picks: Mapping[str, BankPicks | None],
    contents: Callable[[Collection[int]], Mapping[int, Content]],
    settings: InputSettings,
    earlier: Model | None,
) -> bytes:
    """The file of a new model, with what it keeps of an `earlier` one; empty without banks.

    `fitted`: the images to fit on, with their numbers `ROW`. `picks` are by detector, None of those
    without a bank; `contents` gives what was read of images by number.
    """
    before = _by_vector(earlier) if earlier else {}
    banks = {
        JOINT if name == ALL else product_file(name): bank for name, bank in picks.items() if bank
    }
    rows = [row for (file, _), row in before.items() if file not in banks]
    numbers = {number for bank in banks.values() for number, *_ in _places(bank, settings)}
    images = _images(fitted, contents(sorted(numbers - {-1})))
    for file, bank in banks.items():
        for vector, (number, tile, position) in enumerate(_places(bank, settings)):
            if number >= 0:
                origin = _origin(images[number], settings, bank.grid, tile, position)
            elif (file, position) in before:
                origin = before[file, position]
            else:
                continue  # the model that was grown has lost its table
            rows.append(origin | {"file": file, "vector": vector})
    return bank_origins.to_bytes(pa.Table.from_pylist(rows, bank_origins.SCHEMA)) if rows else b""


def _by_vector(model: Model) -> dict[tuple[str, int], Origin]:
    rows = bank_origins.from_bytes(model.origins, model.card.model_id).to_pylist()
    return {(row["file"], row["vector"]): row for row in rows}


def _places(bank: BankPicks, settings: InputSettings) -> Iterator[tuple[int, int | None, int]]:
    """Number of the image, tile and position of each vector; the number is -1 of an earlier one."""
    for image, position in zip(bank.images.tolist(), bank.positions.tolist(), strict=True):
        if image >= 0 and settings.tiled:
            yield *of_tile_id(image), position
        else:
            yield image, None, position


def _images(fitted: pa.Table, contents: Mapping[int, Content]) -> dict[int, Origin]:
    """What is known of some images, by their numbers."""
    chosen = fitted.filter(pc.is_in(fitted[ROW], pa.array(list(contents), pa.int64())))
    rows = zip(chosen[ROW].to_pylist(), chosen.select(_OF_IMAGE).to_pylist(), strict=True)
    return {number: row | contents[number]._asdict() for number, row in rows}


def _origin(
    image: Origin, settings: InputSettings, shape: tuple[int, int], tile: int | None, position: int
) -> Origin:
    grid = PatchGrid(image["width"], image["height"], settings, shape)
    box = grid.box(position, tile or 0)
    return image | box._asdict() | {"tile": tile, "position": position}
