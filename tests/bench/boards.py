"""Boards of sixty magnetic tiles of which one may be defective: squashed, and cut into tiles.

`python -m tests.bench boards` takes about half an hour on one thread. Every board is drawn of whole
tiles at their own resolution, at places that vary with their sizes. PatchCore is fitted on good
boards; no setting is chosen by the boards that are tested.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA
from ops.detectors.detector import Checkpoint, Detector, MapSettings
from ops.detectors.image_batches import Tiles, to_images
from ops.detectors.patchcore import PatchCore, PatchCoreSettings
from ops.detectors.score_tiles import score_tiles
from ops.distributed import Alone
from ops.features.backbone import Backbone, BackboneSettings
from ops.images.decode import DecodeSettings
from ops.images.read_images import Read
from ops.images.resize import InputSettings, geometry
from ops.images.tiles import tile_id
from ops.results.anomaly_map import peak
from ops.results.metrics import roc
from ops.results.write_maps import of_picture
from ops.storage import uris
from tests.bench.features import WEIGHTS
from tests.bench.measure import Row, Time, timed
from tests.conftest import DATA

TILES = DATA / "mtd"
DEFECTS = ("Blowhole", "Break", "Crack", "Fray", "Uneven")
#: Width and height of a board, and of a line of tiles; the background is grey.
BOARD, LINE, GREY = (3840, 2800), 400, 128
ON_BOARD, FIT, TEST = 60, 10, 25
SEED = 0
#: Patches of a fit that do not fit into this memory are thinned early.
SETTINGS = PatchCoreSettings(embedding="concat", max_bank_size=5000, fit_memory=2**30)
INPUTS = {
    "squashed to 224 px": InputSettings(224),
    "squashed to 448 px": InputSettings(448),
    "squashed to 896 px": InputSettings(896),
    "tiles of 224 px, native": InputSettings(224, fit="tile"),
}
_BATCH = 16


class Board(NamedTuple):
    """A drawn board: its file, and the box of the defective tile if it has one."""

    file: Path
    bad: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Outcome:
    """Scores of the boards, whether peaks lie in the bad tile, and the time of a board."""

    scores: Sequence[float]
    hits: Sequence[bool]
    fit: Time
    board: Time


def rows() -> Iterator[Row]:
    """A row for each way to see a board."""
    if not WEIGHTS.exists():
        raise FileNotFoundError(f"boards are drawn of the magnetic tiles; {TILES} lacks them")
    with tempfile.TemporaryDirectory(prefix="nightloupe-bench-") as folder:
        fitted, good, bad = _draw(Path(folder))
        squashed = None
        for name, settings in INPUTS.items():
            found = _measure(settings, fitted, [*good, *bad])
            curve = roc(np.array(found.scores), np.arange(2 * TEST) >= TEST)
            assert curve
            area = curve.area()
            squashed = area if squashed is None else squashed
            note = (
                f"peak in the bad tile: {sum(found.hits)} of {TEST}; "
                f"fit of {FIT} boards {found.fit.wall:.0f} s"
            )
            yield Row(
                f"boards, {name}: image AUROC ({area - squashed:+.3f})",
                f"{area:.3f}",
                found.board,
                "+0.25" if settings.tiled else "",
                note,
            )


def _draw(folder: Path) -> tuple[list[Board], list[Board], list[Board]]:
    """Good boards to fit on, and good and bad ones to test with; no tile is in both kinds."""
    random = np.random.default_rng(SEED)
    names = set((TILES / "train_names.txt").read_text().split())
    free = sorted((TILES / "MT_Free" / "Imgs").glob("*.jpg"))
    known = [file for file in free if file.name in names or file.stem in names]
    other = sorted(set(free) - set(known))
    defective = [f for kind in DEFECTS for f in sorted((TILES / f"MT_{kind}/Imgs").glob("*.jpg"))]

    def boards(kind: str, count: int, tiles: Sequence[Path], bad: Sequence[Path]) -> list[Board]:
        drawn = []
        for number in range(count):
            chosen = [tiles[i] for i in random.choice(len(tiles), ON_BOARD, replace=False)]
            place = None
            if bad:
                place = int(random.integers(ON_BOARD))
                chosen[place] = bad[int(random.integers(len(bad)))]
            drawn.append(_board(folder / f"{kind}{number:02}.png", chosen, place))
        return drawn

    return (
        boards("fit", FIT, known, ()),
        boards("good", TEST, other, ()),
        boards("bad", TEST, other, defective),
    )


def _board(file: Path, tiles: Sequence[Path], place: int | None) -> Board:
    """Draw tiles line by line, from left to right."""
    board = Image.new("L", BOARD, GREY)
    x = y = 0
    bad = None
    for number, tile in enumerate(tiles):
        with Image.open(tile) as image:
            if x + image.width > BOARD[0]:
                x, y = 0, y + LINE
            if y + image.height > BOARD[1]:  # the tiles of this board are wide ones
                break
            board.paste(image.convert("L"), (x, y))
            if number == place:
                bad = (x, y, x + image.width, y + image.height)
            x += image.width
    board.save(file, compress_level=1)
    assert place is None or bad, f"{file}: the bad tile has found no place"
    return Board(file, bad)


def _measure(settings: InputSettings, fitted: Sequence[Board], tested: Sequence[Board]) -> Outcome:
    detector = PatchCore(
        SETTINGS,
        Backbone(BackboneSettings("squeezenet1_1", "features.7,features.10", str(WEIGHTS))),
    )

    def fit() -> None:
        for number, board in enumerate(fitted):
            _add(detector, _read(board, settings), settings, number)
        detector.exchange(Alone())
        detector.fit(Alone(), lambda *_: None, Checkpoint())

    time = timed(fit)
    scores, hits = list[float](), list[bool]()

    def score() -> None:
        for board in tested:
            value, values = _score(detector, _read(board, settings), settings)
            scores.append(value)
            if board.bad:
                x, y = peak(values, geometry(*BOARD, settings))
                left, top, right, bottom = board.bad
                hits.append(left <= x < right and top <= y < bottom)

    return Outcome(scores, hits, time, timed(score).times(1 / len(tested)))


def _read(board: Board, settings: InputSettings) -> pa.Table:
    row = {"image_id": board.file.stem, "uri": uris.make(str(board.file)), "version": "1"}
    listed = pa.Table.from_pylist([row | {"product": "board"}], SCHEMA)
    done = Read(settings, DecodeSettings(), FetchSettings())(listed)
    assert done["status"].to_pylist() == ["ok"], done["reason"].to_pylist()
    return done


def _add(detector: Detector, rows: pa.Table, settings: InputSettings, number: int) -> None:
    if not settings.tiled:
        detector.add_images(to_images(rows, settings, "cpu"), torch.tensor([number]))
        return
    for part in Tiles(rows, settings, "cpu", [0]).batches(_BATCH):
        ids = torch.tensor([tile_id(number, tile) for tile in part.numbers])
        detector.add_images(part.images, ids)


def _score(
    detector: Detector, rows: pa.Table, settings: InputSettings
) -> tuple[float, npt.NDArray[np.float32]]:
    """Score and smoothed map of a board."""
    if settings.tiled:
        tiles = Tiles(rows, settings, "cpu", [0])
        values, [patches] = score_tiles(detector, tiles, _BATCH, nullcontext)
        value = float(values[0])
    else:
        found = detector.score(to_images(rows, settings, "cpu"))
        value, patches = float(found.image[0]), found.map[0].float().numpy()
    return value, of_picture(patches, *BOARD, settings, MapSettings.sigma)
