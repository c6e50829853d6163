"""The photographs of the magnetic tiles, by tile: a tile is photographed at up to six exposures."""

from __future__ import annotations

import pyarrow as pa

from ops.archives.inventory import image_id
from tests.bench import tiles
from tests.conftest import DATA

TILES = DATA / "mtd"


def listed() -> pa.Table:
    """The inventory, whose split leaves no tile on both sides."""
    words = ["--data", str(TILES), "--layout", "mtd"]
    return tiles.listed(tiles.parser("tiles", None).parse_args(words))


def one_of_each_part(rows: pa.Table) -> pa.Table:
    """One photograph of each tile, at an exposure that the hash of its name chooses."""
    names = [uri.rpartition("/")[2] for uri in rows["uri"].to_pylist()]
    order = sorted(range(len(names)), key=lambda row: image_id(names[row], ""))
    parts = rows["part"].to_pylist()
    chosen = {parts[row]: row for row in reversed(order)}
    return rows.take(pa.array(sorted(chosen.values())))
