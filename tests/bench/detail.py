"""The smallest defect that is found: `--input.size auto` against 224 on drawn parts.

Defects of known size are planted in drawn pictures. One is found if its picture's p-value is at
most 0.01: if it scores higher than all held-out good pictures. `python -m tests.bench detail` takes
about an hour on one thread; `SIZES` can be shortened.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from scipy.ndimage import gaussian_filter

from ops.detectors.detector import Checkpoint, Detector
from ops.detectors.image_batches import Tiles, to_images
from ops.detectors.registry import detector_class
from ops.detectors.score_tiles import score_tiles
from ops.distributed import Alone
from ops.features.backbone import Backbone
from ops.images import synthetic_parts
from ops.images.decode import Picture
from ops.images.packed_pixels import column
from ops.images.resize import InputSettings, pack, resize
from ops.images.tiles import tile_id
from ops.results.calibration import Calibration
from pipelines.fitting.choose_input import choose_input
from pipelines.fitting.compare_inputs import name_of
from pipelines.fitting.picture_sizes import PictureSizes
from pipelines.fitting.request import FitRequest
from tests.bench.measure import Row, timed
from tests.bench.shots import preset_request

SIZES = (512, 1024, 2048)
DEFECTS = (4, 8, 16, 32)
#: Good pictures to fit on and to calibrate with, and pictures with a defect of each size.
FITTED, HELD_OUT, DEFECTIVE = 12, 99, 20
RATE = 0.01
#: The change of brightness by a defect, as a share of white; noise has a deviation of 0.01.
CONTRAST = 0.3
_BATCH = 16


def rows() -> Iterator[Row]:
    """For each size of pictures, the share of defects found with 224 and with auto."""
    for size in SIZES:
        for word in ("224", "auto"):
            yield _row(size, _request(word, size))


def _request(word: str, size: int) -> FitRequest:
    asked = preset_request("patchcore-squeezenet", {"input.size": word, "input.fit": "auto"})
    network = Backbone(asked.backbone)
    return choose_input(asked, network, PictureSizes({"part": [(size, size)]})).request


def _row(size: int, request: FitRequest) -> Row:
    detector = _fitted(size, request)
    good: list[float] = []
    seconds = timed(
        lambda: good.extend(_scores(detector, request, size, range(100, 100 + HELD_OUT), 0))
    )
    calibration = Calibration.of(good)
    shares = []
    for defect in DEFECTS:
        scores = _scores(detector, request, size, range(500, 500 + DEFECTIVE), defect)
        found = calibration.p_values(np.array(scores)) <= RATE
        shares.append(f"{defect} px {found.mean():.2f}")
    return Row(
        f"{size} px, {name_of(request.input)}",
        ", ".join(shares),
        seconds.times(1 / HELD_OUT),
        note=f"share of {DEFECTIVE} found at {RATE}; seconds a picture",
    )


def _fitted(size: int, request: FitRequest) -> Detector:
    detector: Detector = detector_class(request.method)(request.settings, _network(request))
    for number in range(FITTED):
        row = _rows(size, [number], 0, request.input)
        if not request.input.tiled:
            detector.add_images(to_images(row, request.input, "cpu"), torch.tensor([number]))
            continue
        for part in Tiles(row, request.input, "cpu", [0]).batches(_BATCH):
            ids = [tile_id(number, tile) for tile in part.numbers]
            detector.add_images(part.images, torch.tensor(ids))
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detector


def _network(request: FitRequest) -> Backbone:
    return Backbone(request.backbone)


def _scores(
    detector: Detector, request: FitRequest, size: int, seeds: Sequence[int], defect: int
) -> list[float]:
    scores: list[float] = []
    for seed in seeds:
        row = _rows(size, [seed], defect, request.input)
        if request.input.tiled:
            tiles = Tiles(row, request.input, "cpu", [0])
            scores += score_tiles(detector, tiles, _BATCH, contextlib.nullcontext)[0].tolist()
        else:
            scores += detector.score(to_images(row, request.input, "cpu")).image.tolist()
    return scores


def _rows(size: int, seeds: Sequence[int], defect: int, settings: InputSettings) -> pa.Table:
    """Rows as `Read` gives them."""
    packed = [pack(resize(Picture(_draw(size, seed, defect), 8), settings)) for seed in seeds]
    count = len(packed)
    kinds = {"width": size, "height": size, "channels": 3, "bit_depth": 8}
    table = pa.table({name: [value] * count for name, value in kinds.items()})
    return table.append_column("pixels", column(packed))


@functools.lru_cache(maxsize=4)
def _part(size: int, seed: int) -> npt.NDArray[np.uint8]:
    return synthetic_parts.draw("fabric", seed, size).picture


def _draw(size: int, seed: int, defect: int) -> npt.NDArray[np.uint8]:
    """A part, with a soft dark or bright disc of a diameter in pixels, if that is not 0."""
    picture = _part(size, seed)
    if not defect:
        return picture
    rng = np.random.default_rng([size, seed, defect])
    x, y = rng.uniform(defect, size - defect, 2)
    rows, columns = np.mgrid[:size, :size]
    disc = np.hypot(columns + 0.5 - x, rows + 0.5 - y) <= defect / 2
    change = CONTRAST * 255 * rng.choice([-1, 1]) * gaussian_filter(disc.astype(float), 0.7)
    return (picture + change[..., None]).clip(0, 255).astype(np.uint8)
