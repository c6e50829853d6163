"""Boards of sixty magnetic tiles of which one may be defective: squashed, and cut into tiles.

`python -m tests.bench boards` takes about an hour on one thread. Every board is drawn of whole
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
from ops.images.resize import Exposure, InputSettings, geometry
from ops.images.tiles import tile_id
from ops.results.anomaly_map import peak
from ops.results.combination import combined
from ops.results.metrics import roc
from ops.results.write_maps import of_picture
from ops.storage import uris
from tests.bench.features import EFFICIENTNET, WEIGHTS
from tests.bench.measure import Row, Time, timed
from tests.bench.tile_parts import TILES, listed

#: Width and height of a board, and of a line of tiles; the background is grey.
BOARD, LINE, GREY = (3840, 2800), 400, 128
ON_BOARD, FIT, HELD_OUT, TEST = 60, 10, 20, 25
#: Share of the tiles without defects, and not of the test, that boards to fit on are drawn of.
_OF_FIT = 0.7
SEED = 0
SQUEEZENET = BackboneSettings("squeezenet1_1", "features.7,features.10", str(WEIGHTS))
LITE0 = BackboneSettings(
    "timm/tf_efficientnet_lite0",
    "blocks.2,blocks.4",
    str(EFFICIENTNET),
    mean="0.485,0.456,0.406",
    std="0.229,0.224,0.225",
)
#: The 3.4 million patches of a fit by tiles fit into memory with 152 channels (4 GB), not with 640:
#: those beyond this memory are thinned early.
FIT_MEMORY = {SQUEEZENET: 2**30, LITE0: 0}
#: Draws of boards from the scores of single tiles.
_DRAWS = 20_000
_BATCH = 16


class View(NamedTuple):
    """A way to see boards."""

    network: BackboneSettings
    input: InputSettings

    def __str__(self) -> str:
        """As the table names it."""
        kind = "tiles of" if self.input.tiled else "squashed to"
        exposure = "" if self.input.exposure == "as_is" else f", exposure {self.input.exposure}"
        network = self.network.name.removeprefix("timm/tf_")
        return f"{network}, {kind} {self.input.size} px{exposure}"


def _views(network: BackboneSettings, exposure: Exposure, *sizes: int) -> list[View]:
    """Squashed to some sizes, and tiles last."""
    squashed = [InputSettings(size, exposure=exposure) for size in sizes]
    tiled = InputSettings(224, fit="tile", exposure=exposure)
    return [View(network, each) for each in (*squashed, tiled)]


#: Lists of views of which the first and the last are also combined, as `--input.also whole` does.
VIEWS = (
    _views(SQUEEZENET, "as_is", 224, 448, 896),
    _views(LITE0, "median", 224),
)


class Board(NamedTuple):
    """A drawn board: its file, the boxes of its tiles, and which is the defective one if any."""

    file: Path
    boxes: list[tuple[int, int, int, int]]
    bad: int | None


@dataclass(frozen=True)
class Outcome:
    """What a view says of boards."""

    scores: npt.NDArray[np.float64]
    peaks: list[list[float]]
    """The largest value of the map within each tile of each board."""
    hits: list[bool]
    """Whether the peak of each board with a defective tile lies in that tile."""
    board: Time


def rows() -> Iterator[Row]:
    """A row for each way to see a board."""
    if not WEIGHTS.exists():
        raise FileNotFoundError(f"boards are drawn of the magnetic tiles; {TILES} lacks them")
    with tempfile.TemporaryDirectory(prefix="nightloupe-bench-") as folder:
        boards = draw_boards(Path(folder))
        for views in VIEWS:
            found = []
            for view in views:
                found.append(_measure(view, boards))
                yield _row(str(view), view.input.tiled, found[-1])
            scores = [each.scores[HELD_OUT:] for each in (found[0], found[-1])]
            known = [np.sort(each.scores[:HELD_OUT]) for each in (found[0], found[-1])]
            both = _auroc(combined(scores, known, "smallest_p"))
            yield Row("  these tiles, and squashed to 224 px (smaller p-value)", f"{both:.3f}")


def _auroc(scores: npt.NDArray[np.float64]) -> float:
    curve = roc(scores, np.arange(2 * TEST) >= TEST)
    assert curve
    return curve.area()


def _row(name: str, tiled: bool, found: Outcome) -> Row:
    good = np.concatenate(found.peaks[HELD_OUT : HELD_OUT + TEST])
    # The defective tile is the first of its board's.
    bad = np.array([peaks[0] for peaks in found.peaks[HELD_OUT + TEST :]])
    note = f"peak in the bad tile: {sum(found.hits)} of {TEST}"
    if tiled:
        note += (
            f"; a tile by itself {float((bad[:, None] > good).mean()):.3f}"
            f", boards of such tiles at random {_expected(good, bad):.3f}"
        )
    what = f"boards, {name}: image AUROC"
    return Row(what, f"{_auroc(found.scores[HELD_OUT:]):.3f}", found.board, note=note)


def _expected(good: npt.NDArray[np.float64], bad: npt.NDArray[np.float64]) -> float:
    """The AUROC of boards' largest tiles if tiles were drawn independently of each other."""
    random = np.random.default_rng(SEED)
    one, other = random.choice(good, (2, _DRAWS, ON_BOARD - 1)).max(axis=2)
    with_bad = np.maximum(other, random.choice(bad, _DRAWS))
    return float((with_bad > one).mean() + (with_bad == one).mean() / 2)


def draw_boards(folder: Path) -> dict[str, list[Board]]:
    """Good boards to fit on and to hold out, and good and bad ones to test with.

    No tile is in two of the kinds fit, held and test, in no photograph.
    """
    random = np.random.default_rng(SEED)
    rows = listed().sort_by("uri").to_pylist()
    parts = random.permutation(sorted({row["part"] for row in rows if row["split"] == "train"}))
    of_fit = set(parts[: round(_OF_FIT * len(parts))])
    kinds_of: dict[str, list[Path]] = {"fit": [], "held": [], "good": [], "bad": []}
    for row in rows:
        kind = "bad" if row["label"] else "good"
        if row["split"] == "train":
            kind = "fit" if row["part"] in of_fit else "held"
        kinds_of[kind].append(Path(uris.parse(row["uri"]).location))

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

    return {
        "fit": boards("fit", FIT, kinds_of["fit"], ()),
        "held": boards("held", HELD_OUT, kinds_of["held"], ()),
        "good": boards("good", TEST, kinds_of["good"], ()),
        "bad": boards("bad", TEST, kinds_of["good"], kinds_of["bad"]),
    }


def _board(file: Path, tiles: Sequence[Path], place: int | None) -> Board:
    """Draw tiles line by line, from left to right."""
    board = Image.new("L", BOARD, GREY)
    x = y = 0
    boxes = list[tuple[int, int, int, int]]()
    for tile in tiles:
        with Image.open(tile) as image:
            if x + image.width > BOARD[0]:
                x, y = 0, y + LINE
            if y + image.height > BOARD[1]:  # the tiles of this board are wide ones
                break
            board.paste(image.convert("L"), (x, y))
            boxes.append((x, y, x + image.width, y + image.height))
            x += image.width
    board.save(file, compress_level=1)
    assert place is None or place < len(boxes), f"{file}: the bad tile has found no place"
    return Board(file, boxes, place)


def fitted(view: View, boards: Sequence[Board]) -> Detector:
    """PatchCore on good boards."""
    memory = FIT_MEMORY[view.network]
    settings = PatchCoreSettings(embedding="concat", max_bank_size=5000, fit_memory=memory)
    detector = PatchCore(settings, Backbone(view.network))
    for number, board in enumerate(boards):
        _add(detector, _read(board, view.input), view.input, number)
    detector.exchange(Alone())
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detector


def _measure(view: View, boards: dict[str, list[Board]]) -> Outcome:
    detector = fitted(view, boards["fit"])
    tested = [*boards["held"], *boards["good"], *boards["bad"]]
    scores, peaks, hits = list[float](), list[list[float]](), list[bool]()

    def score() -> None:
        for board in tested:
            value, values = score_board(detector, board, view.input)
            scores.append(value)
            peaks.append([_largest(values, box) for box in board.boxes])
            if board.bad is not None:
                x, y = peak(values, geometry(*BOARD, view.input))
                left, top, right, bottom = board.boxes[board.bad]
                hits.append(left <= x < right and top <= y < bottom)
                peaks[-1].insert(0, peaks[-1].pop(board.bad))

    seconds = timed(score).times(1 / len(tested))
    return Outcome(np.array(scores), peaks, hits, seconds)


def _largest(values: npt.NDArray[np.float32], box: tuple[int, int, int, int]) -> float:
    """The largest value of a board's map within a box in pixels of the board."""
    steps = np.array(values.shape[::-1]) / BOARD
    left, top, right, bottom = np.floor(np.array(box) * np.tile(steps, 2)).astype(int)
    return float(values[top : max(top + 1, bottom), left : max(left + 1, right)].max())


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


def score_board(
    detector: Detector, board: Board, settings: InputSettings
) -> tuple[float, npt.NDArray[np.float32]]:
    """Score and smoothed map of a board."""
    rows = _read(board, settings)
    if settings.tiled:
        tiles = Tiles(rows, settings, "cpu", [0])
        values, [patches] = score_tiles(detector, tiles, _BATCH, nullcontext)
        value = float(values[0])
    else:
        found = detector.score(to_images(rows, settings, "cpu"))
        value, patches = float(found.image[0]), found.map[0].float().numpy()
    return value, of_picture(patches, *BOARD, settings, MapSettings.sigma)
