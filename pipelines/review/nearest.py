"""The good places that the peak of a part is most similar to, by the bank of its model."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ops.archives.views import detector_name, views_of
from ops.errors import UserError
from ops.images.patch_grid import Box
from pipelines.review.pictures import NoPicture, Pictures

if TYPE_CHECKING:
    from ops.detectors.nearest_patches import NearestPatches

#: Methods of models that may have a bank whose origins are known.
METHODS = {"patchcore", "ensemble"}
_COUNT = 3
#: Cells that a crop shows on each side of the patch.
_CONTEXT = 4
#: Bytes of detectors that are kept.
_MEMORY = 2**29
Row = Mapping[str, Any]


class Nearest:
    """Compares peaks with the bank of the model folder at `location`.

    The model is read when it is first asked for. Several threads may use it; one compares at a
    time.
    """

    def __init__(self, location: str, model_id: str, pictures: Pictures, good: Pictures) -> None:
        """`pictures` are those of parts, `good` those of the fit."""
        self._location, self._model_id = location, model_id
        self._pictures, self._good = pictures, good
        self._loading, self._searching = threading.Lock(), threading.Lock()
        self._loaded: NearestPatches | None = None

    def of(self, row: Row, record: Row) -> dict[str, Any]:
        """The surroundings of a part's peak, and the most similar good places with distances.

        Raises NoPicture if they cannot be told.
        """
        if row["peak_x"] is None:
            raise NoPicture("the part has no peak")
        picture = self._pictures.picture(row, record)
        model, name = self._model(), detector_name(row, views_of(record))
        with self._searching:
            found = model.find(name, picture, row["peak_x"], row["peak_y"], _COUNT)
        places = [
            {"vector": near.vector, "distance": near.distance}
            | (_place(near.origin) if near.origin else {})
            for near in found.near
        ]
        own = _framed(found.cell, picture.width, picture.height)
        return {"peak": own, "places": places}

    def crop(self, row: Row, record: Row, vector: int, side: int) -> bytes:
        """A JPEG of a good place with its surroundings, at most `side` pixels wide and high.

        `row` is that of the part. Raises NoPicture.
        """
        origin = self._model().origin(detector_name(row, views_of(record)), vector)
        if origin is None:
            raise NoPicture("the model does not know which picture this is from")
        left, top, width, height = _place(origin)["box"]
        box = left, top, left + width, top + height
        return self._good.crop(origin | {"run_id": self._model_id}, record, box, side)

    def _model(self) -> NearestPatches:
        """The model, which is read once. Raises NoPicture."""
        with self._loading:
            if self._loaded is None:
                try:
                    self._loaded = self._read()
                except UserError as error:
                    raise NoPicture(str(error)) from error
            return self._loaded

    def _read(self) -> NearestPatches:
        # With torch, which takes seconds; the page is shown without it.
        from ops.detectors.model_folder import read_card  # noqa: PLC0415
        from ops.detectors.nearest_patches import NearestPatches  # noqa: PLC0415

        card = read_card(self._location)
        if card.model_id != self._model_id:
            raise UserError(
                f"the model at {self._location} is {card.model_id}, and the parts were scored by "
                f"{self._model_id}; name its folder with --model"
            )
        threads = max(1, (os.cpu_count() or 2) // 2)  # the others decode pictures
        return NearestPatches(self._location, card, _MEMORY, threads)


def _place(origin: Row) -> dict[str, Any]:
    cell = Box(origin["left"], origin["top"], origin["right"], origin["bottom"])
    framed = _framed(cell, origin["width"], origin["height"])
    return framed | {"uri": origin["uri"], "product": origin["product"]}


def _framed(cell: Box, width: int, height: int) -> dict[str, list[int]]:
    """A cell, and the square around it, moved to lie within a picture; as x, y, width, height."""
    side = (1 + 2 * _CONTEXT) * max(cell.right - cell.left, cell.bottom - cell.top)
    across, down = min(side, width), min(side, height)
    left = min(max((cell.left + cell.right - across) // 2, 0), width - across)
    top = min(max((cell.top + cell.bottom - down) // 2, 0), height - down)
    return {
        "box": [left, top, across, down],
        "cell": [cell.left, cell.top, cell.right - cell.left, cell.bottom - cell.top],
    }
