"""Tiles, and the squashed picture as one more view of the same image: an ensemble of both.

Tiles see small defects. A part that is missing altogether may leave nothing but normal tiles; the
whole picture shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from ops.archives.inventory import Inventory
from ops.detectors.ensemble import EnsembleSettings
from ops.detectors.model_folder import Model
from ops.errors import SettingError
from ops.images.resize import InputSettings
from ops.progress import ProgressCallback
from pipelines.cluster.resources import Resources
from pipelines.fitting.decided import Decided
from pipelines.fitting.ensemble import EnsembleRequest, ensemble
from pipelines.fitting.fit import fit
from pipelines.fitting.request import FitRequest

Also = Literal["none", "whole"]


@dataclass(frozen=True)
class FitInput(InputSettings):
    """The input of a fit, and what else it shows of each picture."""

    also: Also = "none"
    """With `tile`: `whole` also fits a detector on the picture squashed to `size`, which sees a
    component that is missing or misplaced. Both are one model; the smaller of their p-values
    decides. Ignored where the default `auto` sees pictures whole anyway."""

    def __post_init__(self) -> None:
        """Raise SettingError for values out of range."""
        super().__post_init__()
        if self.also not in get_args(Also):
            raise SettingError(f"input.also {self.also!r} must be one of {get_args(Also)}")
        if self.also == "whole" and self.fit in {"squash", "crop"}:
            raise SettingError(
                f"input.also whole needs tiles, and input.fit is {self.fit}; choose input.fit tile"
            )

    @property
    def alone(self) -> InputSettings:
        """The input of one detector."""
        return InputSettings(**{each.name: getattr(self, each.name) for each in _FIELDS})


_FIELDS = fields(InputSettings)


def whole(request: FitRequest) -> FitRequest:
    """The fit of whole pictures that belongs to one of tiles: squashed to the size of a tile."""
    own = request.input
    seen = InputSettings(size=own.size, filter=own.filter, exposure=own.exposure)
    return replace(request, input=seen)


def fit_with_whole(
    inventory: Inventory,
    request: FitRequest,
    resources: Resources,
    progress: ProgressCallback,
    say: Callable[[str], object],
    decided: Decided | None = None,
) -> Model:
    """Fit detectors of tiles and of whole pictures as one model; see `fit` for what it raises.

    Returns the model of whole pictures alone if the fit chose to see no tiles.
    """
    tiles = fit(inventory, request, resources, progress, None, say, decided)
    if not tiles.card.input.tiled:
        say("pictures are seen whole, so --input.also whole adds nothing")
        return tiles
    say("the same pictures as a whole (--input.also whole):")
    of_whole = whole(replace(request, input=tiles.card.input))
    squashed = fit(inventory, of_whole, resources, progress, None, say, decided)
    # A defect that one of both sees must not be averaged away by the other.
    settings = EnsembleSettings(request.settings.sigma, "smallest_p")
    combined = EnsembleRequest(
        settings, request.false_alarm_rate, request.fetch, request.region_rate
    )
    is_defect = decided.is_defect if decided else None
    return ensemble([tiles, squashed], inventory, combined, resources, progress, is_defect)
