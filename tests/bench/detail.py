"""The smallest defect that is found: `--input.size auto` against 224 on drawn parts.

Discs of known size are planted in drawn pictures. One is found if its picture's p-value is at most
0.01: if it scores higher than all held-out good pictures. `python -m tests.bench detail` takes
about an hour on one thread, most of it for the largest pictures, and writes detail.png.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from ops.detectors.detector import Checkpoint, Detector
from ops.detectors.image_batches import Tiles, to_images
from ops.detectors.registry import detector_class
from ops.distributed import Alone
from ops.features.backbone import Backbone
from ops.images import synthetic_parts
from ops.images.decode import Picture
from ops.images.packed_pixels import column
from ops.images.resize import InputSettings, pack, resize, tiling
from ops.images.tiles import Tiling, tile_id
from ops.results.calibration import Calibration
from pipelines.fitting.choose_input import choose_input
from pipelines.fitting.compare_inputs import name_of
from pipelines.fitting.picture_sizes import PictureSizes
from pipelines.fitting.request import FitRequest
from tests.bench.measure import Row, Time, timed
from tests.bench.shots import preset_request

SIZES = (512, 1024, 2048, 4096)
DEFECTS = (4, 8, 16, 32)
#: Good pictures to fit on, by their size, so that their patches take at most 7 GB.
FITTED = {512: 12, 1024: 12, 2048: 12, 4096: 4}
#: Good pictures to calibrate with, and pictures in which each defect is planted.
HELD_OUT, DEFECTIVE = 99, 20
RATE = 0.01
#: A defect counts as one that is found if so many of the pictures with it are.
MOST = 0.9
#: The change of brightness by a defect, as a share of white; noise has a deviation of 0.01.
CONTRAST = 0.3
_BANK = {"patchcore.max_bank_size": "5000"}
_BATCH = 16

Disc = tuple[float, float, int, int]


def rows() -> Iterator[Row]:
    """For each size of pictures, the share of defects found with 224 and with auto."""
    shares: dict[tuple[int, str], list[float]] = {}
    for size in SIZES:
        for word in ("224", "auto"):
            request = _request(word, size)
            found, seconds = _measured(size, request)
            shares[size, word] = found
            yield Row(
                f"{size} px, {name_of(request.input)}",
                ", ".join(f"{d} px {share:.2f}" for d, share in zip(DEFECTS, found, strict=True)),
                seconds,
                note=f"share of {DEFECTIVE} found; smallest found: {smallest(found)}",
            )
        _draw_plot(shares)


def smallest(found: Sequence[float]) -> str:
    """The smallest defect from which on all larger ones are found."""
    known = ""
    for defect, share in zip(reversed(DEFECTS), reversed(found), strict=True):
        if share < MOST:
            break
        known = f"{defect} px"
    return known or "none"


def _request(word: str, size: int) -> FitRequest:
    changes = {"input.size": word, "input.fit": "auto", **_BANK}
    asked = preset_request("patchcore-squeezenet", changes)
    network = Backbone(asked.backbone)
    return choose_input(asked, network, PictureSizes({"part": [(size, size)]})).request


def _measured(size: int, request: FitRequest) -> tuple[list[float], Time]:
    """The share found of each size of defect, and the seconds of a picture."""
    detector = _fitted(size, request)
    good: list[float] = []

    def score() -> None:
        for seed in range(100, 100 + HELD_OUT):
            good.append(max(_tile_scores(detector, request, _draw(size, seed)).values()))

    seconds = timed(score).times(1 / HELD_OUT)
    calibration, scores = Calibration.of(good), np.empty((len(DEFECTS), DEFECTIVE))
    for place in range(DEFECTIVE):
        seed = 500 + place
        clean = _tile_scores(detector, request, _draw(size, seed))
        for row, defect in enumerate(DEFECTS):
            disc = _disc(size, seed, defect)
            touched = _touched(request.input, size, disc)
            # Tiles do not depend on each other: those beside the defect keep their scores.
            changed = _tile_scores(detector, request, _draw(size, seed, disc), touched)
            scores[row, place] = max({**clean, **changed}.values())
    found = calibration.p_values(scores.ravel()).reshape(scores.shape) <= RATE
    return found.mean(axis=1).tolist(), seconds


def _fitted(size: int, request: FitRequest) -> Detector:
    network = Backbone(request.backbone)
    detector: Detector = detector_class(request.method)(request.settings, network)
    for number in range(FITTED[size]):
        row = _row(_draw(size, number), request.input)
        if not request.input.tiled:
            detector.add_images(to_images(row, request.input, "cpu"), torch.tensor([number]))
            continue
        for part in Tiles(row, request.input, "cpu", [0]).batches(_BATCH):
            ids = [tile_id(number, tile) for tile in part.numbers]
            detector.add_images(part.images, torch.tensor(ids))
    detector.exchange(Alone())
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detector


class _SomeTiles(Tiles):
    """Those of a picture's tiles that are asked for."""

    asked: Collection[int] | None = None

    def _is_seen(self, row: int, number: int) -> bool:
        return self.asked is None or (number in self.asked and super()._is_seen(row, number))


def _tile_scores(
    detector: Detector,
    request: FitRequest,
    picture: npt.NDArray[np.uint8],
    asked: Collection[int] | None = None,
) -> dict[int, float]:
    """The score of each tile, or of those asked for; a picture seen whole is one tile."""
    row = _row(picture, request.input)
    if not request.input.tiled:
        return {0: float(detector.score(to_images(row, request.input, "cpu")).image[0])}
    tiles = _SomeTiles(row, request.input, "cpu", [0])
    tiles.asked = asked
    scores: dict[int, float] = {}
    for part in tiles.batches(_BATCH):
        found = detector.score(part.images).image.tolist()
        scores |= dict(zip(part.numbers, found, strict=True))
    return scores


def _touched(settings: InputSettings, size: int, disc: Disc) -> list[int]:
    """Numbers of the tiles on which a disc, with its soft edge, lies."""
    if not settings.tiled:
        return [0]
    left, top, right, bottom = _box(size, disc)
    tiles: Tiling = tiling(size, size, settings)
    corners = [tiles.corner(number) for number in range(tiles.total)]
    return [
        number
        for number, (x, y) in enumerate(corners)
        if x < right and left < x + tiles.size and y < bottom and top < y + tiles.size
    ]


def _row(picture: npt.NDArray[np.uint8], settings: InputSettings) -> pa.Table:
    """A row as `Read` gives it."""
    height, width, channels = picture.shape
    kinds = {"width": width, "height": height, "channels": channels, "bit_depth": 8}
    table = pa.table({name: [value] for name, value in kinds.items()})
    return table.append_column("pixels", column([pack(resize(Picture(picture, 8), settings))]))


@functools.lru_cache(maxsize=2)
def _part(size: int, seed: int) -> npt.NDArray[np.uint8]:
    return synthetic_parts.draw("fabric", seed, size).picture


def _disc(size: int, seed: int, defect: int) -> Disc:
    """Where a defect of a diameter in pixels lies, and whether it is dark (-1) or bright (1)."""
    rng = np.random.default_rng([size, seed, defect])
    x, y = rng.uniform(defect, size - defect, 2)
    return float(x), float(y), defect, int(rng.choice([-1, 1]))


def _box(size: int, disc: Disc) -> tuple[int, int, int, int]:
    """The part of the picture that a disc changes: left, top, right, bottom."""
    x, y, diameter, _ = disc
    reach = diameter / 2 + 4
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    return left, top, min(size, int(x + reach) + 1), min(size, int(y + reach) + 1)


def _draw(size: int, seed: int, disc: Disc | None = None) -> npt.NDArray[np.uint8]:
    """A part, with a disc with soft edges if there is one."""
    picture = _part(size, seed)
    if disc is None:
        return picture
    x, y, diameter, sign = disc
    left, top, right, bottom = _box(size, disc)
    rows, columns = np.mgrid[top:bottom, left:right]
    inside = np.hypot(columns + 0.5 - x, rows + 0.5 - y) <= diameter / 2
    change = CONTRAST * 255 * sign * gaussian_filter(inside.astype(float), 0.7)
    changed = picture.copy()
    part = changed[top:bottom, left:right]
    part[...] = (part + change[..., None]).clip(0, 255).astype(np.uint8)
    return changed


def _draw_plot(shares: dict[tuple[int, str], list[float]]) -> None:
    sizes = sorted({size for size, _ in shares})
    figure = Figure(figsize=(2.3 * len(sizes), 2.6), layout="constrained")
    for panel, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        for word, marker in (("224", "s"), ("auto", "o")):
            panel.plot(DEFECTS, shares[size, word], marker=marker, label=f"size {word}")
        panel.set(xscale="log", xticks=DEFECTS, xticklabels=DEFECTS, ylim=(-0.05, 1.05))
        panel.set(title=f"pictures of {size} px", xlabel="defect, px")
        panel.minorticks_off()
    figure.axes[0].set_ylabel(f"share found at rate {RATE}")
    figure.axes[0].legend()
    figure.savefig(Path("detail.png"), dpi=100, metadata={"Software": None})
