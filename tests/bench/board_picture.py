"""A board with a defective tile, its map and its regions, as a picture for readers.

`python -m tests.bench board_picture` writes board.png. It takes some minutes on one thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ops.images.resize import geometry
from ops.results.anomaly_map import Map
from ops.results.calibration import Calibration
from ops.results.regions import Found, RegionRules, RegionSettings
from tests.bench.boards import BOARD, HELD_OUT, VIEWS, Board, draw_boards, fitted, score_board
from tests.bench.measure import Row

_RATE = 1 / (HELD_OUT + 1)
_SMALL = (BOARD[0] // 4, BOARD[1] // 4)


def rows() -> Iterator[Row]:
    """The first board whose largest region lies in its defective tile, and those before it."""
    view = VIEWS[-1][-1]
    with tempfile.TemporaryDirectory(prefix="nightloupe-bench-") as folder:
        boards = draw_boards(Path(folder))
        detector = fitted(view, boards["fit"])
        maps = (score_board(detector, board, view.input)[1] for board in boards["held"])
        peaks = {"board": Calibration.of([float(values.max()) for values in maps])}
        rules = RegionRules.of(peaks, RegionSettings(_RATE))
        for board in boards["bad"]:
            _, values = score_board(detector, board, view.input)
            found = rules.find(values, geometry(*BOARD, view.input), BOARD, "board")
            count = len(found.regions) if found else 0
            yield Row(board.file.stem, f"{count} regions")
            if found and found.regions and _is_hit(board, found):
                _draw(board, values, found)
                return


def _is_hit(board: Board, found: Found) -> bool:
    assert board.bad is not None
    left, top, right, bottom = board.boxes[board.bad]
    largest = found.regions[0]
    return left <= largest.centroid_x < right and top <= largest.centroid_y < bottom


def _draw(board: Board, values: Map, found: Found) -> None:
    """The board, its map with the regions, and the defective tile, side by side."""
    figure = Figure(figsize=(13.2, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    with Image.open(board.file) as image:
        whole = np.asarray(image)
        small = np.asarray(image.resize(_SMALL, Image.Resampling.BOX))
    assert board.bad is not None
    left, top, right, bottom = board.boxes[board.bad]
    extent = (0, BOARD[0], BOARD[1], 0)
    panels[0].imshow(small, cmap="gray", vmin=0, vmax=255, extent=extent)
    panels[0].set_title("a board of 3840 x 2800 px")
    # Half of the map is below the darkest colour.
    panels[1].imshow(values, cmap="magma", extent=extent, vmin=np.median(values))
    panels[1].set_title("its map, and the regions above the threshold")
    tile = whole[top:bottom, left:right]
    panels[2].imshow(tile, cmap="gray", vmin=0, vmax=255, extent=(left, right, bottom, top))
    panels[2].set_title("the tile with the region")
    for panel, margin in zip(panels, (50, 50, 0), strict=True):
        panel.axis("off")
        _mark(panel, found, margin)
    for panel in panels[:2]:
        panel.set_ylim(max(box[3] for box in board.boxes), 0)
    panels[2].set(xlim=(left, right), ylim=(bottom, top))
    figure.savefig("board.png", dpi=100, metadata={"Software": None})


def _mark(panel: Axes, found: Found, margin: int) -> None:
    """The boxes of the regions, larger by a margin in pixels."""
    for region in found.regions:
        corner = (region.box_x - margin, region.box_y - margin)
        sides = (region.box_width + 2 * margin, region.box_height + 2 * margin)
        panel.add_patch(Rectangle(corner, *sides, fill=False, ec="cyan", lw=1.5))
