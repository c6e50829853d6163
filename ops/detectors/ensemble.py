"""Ensembles: several models that score one image together, as one model.

A member keeps its method, backbone and input. What the members say is brought to common units by
what they said of the same held-out good images; see `ops.results.combination` for scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pyarrow as pa

from ops.detectors.detector import MapSettings, settings_from
from ops.detectors.loaded_model import ImageScores, LoadedModel, ModelTensors, Step
from ops.detectors.model_card import ModelCard
from ops.errors import SettingError, UserError
from ops.images.resize import InputSettings
from ops.results.anomaly_map import LEVELS, Map, Scale, enlarge
from ops.results.combination import Combine, Floats, Position, combined

METHOD = "ensemble"


@dataclass(frozen=True)
class EnsembleSettings(MapSettings):
    """How an ensemble combines its members."""

    combine: Combine = "mean"
    """`mean` averages the members' scores, each in spreads (half the distance between quartiles)
    above the median of its held-out scores; `smallest_p` takes the member with the smallest
    p-value."""

    def __post_init__(self) -> None:
        """Raise SettingError for an unknown combination."""
        if self.combine not in get_args(Combine):
            raise SettingError(f"combine {self.combine!r} must be one of {get_args(Combine)}")


def check_members(cards: Sequence[ModelCard]) -> None:
    """Check that models can be members of one ensemble. Raises UserError."""
    if len(cards) < 2:
        raise UserError(f"an ensemble has at least 2 members, not {len(cards)}; name more --models")
    tiled = next((card.input for card in cards if card.input.tiled), InputSettings())
    for number, card in enumerate(cards, start=1):
        if card.members:
            raise UserError(f"member {number} is itself an ensemble; name its members instead")
        for what, mine, first in (
            ("products", sorted(card.products), sorted(cards[0].products)),
            ("views", card.views, cards[0].views),
            ("decode settings", card.decode, cards[0].decode),
            ("holdout", card.fit.get("holdout"), cards[0].fit.get("holdout")),
            ("inspection masks", card.masks, cards[0].masks),
            ("part of the picture", _shown(card.input, tiled), _shown(cards[0].input, tiled)),
        ):
            if mine != first:
                raise UserError(
                    f"member {number} has other {what} than member 1: {_short(mine)}, and "
                    f"{_short(first)}; fit all members with the same"
                )


def _shown(settings: InputSettings, tiled: InputSettings) -> InputSettings:
    """Inputs for which this is equal show the same of a picture.

    Squashed ones show all of it, as do those of the members that are `tiled`.
    """
    return replace(tiled if settings.fit == "squash" else settings, exposure="as_is")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def common_input(cards: Sequence[ModelCard]) -> InputSettings:
    """The input that maps of an ensemble are drawn in: that of tiles, otherwise the largest."""
    largest = max(
        (card.input for card in cards), key=lambda each: (each.tiled, math.prod(each.sides))
    )
    return replace(largest, exposure="as_is")


def common_scale(cards: Sequence[ModelCard], peaks: Sequence[Sequence[Position]]) -> Scale:
    """The scale that holds the mean of maps that each lie on the scale of their model.

    `peaks` are those of the members, for each product.
    """
    lowest = [card.map_scale.offset for card in cards]
    highest = [card.map_scale.offset + card.map_scale.scale * (LEVELS - 1) for card in cards]
    offset = min(_mean_position(lowest, of_product) for of_product in peaks)
    top = max(_mean_position(highest, of_product) for of_product in peaks)
    # Rounded to a few digits, so that the scale does not depend on the rounding of sums.
    return Scale(float(f"{offset:.4e}"), float(f"{top - offset:.1e}") / (LEVELS - 1))


def _mean_position(values: Sequence[float], peaks: Sequence[Position]) -> float:
    places = [(value - p.centre) / p.spread for value, p in zip(values, peaks, strict=True)]
    return sum(places) / len(places)


class LoadedEnsemble:
    """An ensemble whose members are loaded."""

    def __init__(self, tensors: ModelTensors, device: str, memory: int, batch: int) -> None:
        """`memory` bytes of detectors are kept, but at least one of each member."""
        card = self._card = tensors.card
        self._settings = settings_from(EnsembleSettings, card.settings)
        each = memory // len(card.members)
        self._members = []
        for member in tensors.members:
            place = card.inputs.index(replace(member.card.input, exposure=card.input.exposure))
            before = card.inputs[:place]
            self._members.append(LoadedModel(member, device, each, batch, before))

    def scores(
        self, product: str, rows: pa.Table, chosen: Sequence[int], step: Step
    ) -> ImageScores:
        """Scores of the chosen rows, whose pixels are packed for all members."""
        found = [member.scores(product, rows, chosen, step) for member in self._members]
        known = [held_out_scores(member, product) for member in self._card.members]
        values = combined([scores.values for scores in found], known, self._settings.combine)
        peaks = self._card.products[product].member_peaks
        maps = zip(*(scores.maps for scores in found), strict=True)
        return ImageScores(values, [mean_map(of_row, peaks) for of_row in maps])


def held_out_scores(card: ModelCard, product: str) -> Floats:
    """The scores of a member's held-out images, one for each part, ascending."""
    return np.array(card.products[product].calibration.scores, np.float64)


def mean_map(maps: Sequence[Map], peaks: Sequence[Position]) -> Map:
    """The mean of members' maps of one image, on the finest of their grids.

    Values are in spreads above the median of the highest values of maps of held-out images.
    """
    rows, columns = (max(each.shape[axis] for each in maps) for axis in (0, 1))
    total = np.zeros((rows, columns), np.float32)
    for values, (centre, spread) in zip(maps, peaks, strict=True):
        fine = values if values.shape == total.shape else enlarge(values, (columns, rows), (0, 0))
        total += (fine - np.float32(centre)) / np.float32(spread)
    return np.asarray(total / np.float32(len(maps)))


def loaded(
    tensors: ModelTensors, device: str, memory: int, batch: int
) -> LoadedModel | LoadedEnsemble:
    """A model or an ensemble, ready to score."""
    kind = LoadedEnsemble if tensors.card.members else LoadedModel
    return kind(tensors, device, memory, batch)
