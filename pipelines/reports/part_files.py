"""The files of parts: the picture as it was scored, and the anomaly map."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ops.archives.fetch import FetchSettings, fetch
from ops.errors import UserError
from ops.failure import Failure
from ops.images.decode import DecodeSettings, Picture, decode
from ops.images.resize import InputSettings
from ops.results import map_png
from ops.results.map_png import Decoded
from ops.storage import parquet, uris
from ops.storage.paths import Out

Row = Mapping[str, Any]


class Changed(Exception):
    """The bytes at an address are not those that were scored."""


class Misfit(Exception):
    """A map was drawn for a picture of another shape."""


class PartFiles(NamedTuple):
    """Reads the files of rows of a score table."""

    out: Out
    input: InputSettings
    """That of the model, from which follows how a map lies on its picture."""
    decode: DecodeSettings
    fetch: FetchSettings

    def picture(
        self, row: Row, member: Mapping[str, Any], least_side: int | None = None
    ) -> Picture:
        """The picture that was scored; `member` is an entry of `members_of`, or has only None.

        With `least_side` it may be smaller, see `decode`. Raises Changed if the address holds other
        bytes now, or a Failure.
        """
        return decode(self._bytes(row, member), self.decode, least_side=least_side)

    def _bytes(self, row: Row, member: Mapping[str, Any]) -> bytes:
        """The bytes that were scored: of the member, or by name if its archive was rewritten."""
        if member["member"] is not None:
            try:
                data = fetch(row["uri"], member["member"], member["bytes"], self.fetch)
                if _is_scored(data, row):
                    return data
            except Failure:
                pass  # the archive may be another one now; by name it says what became of it
        data = fetch(row["uri"], None, None, self.fetch)
        if not _is_scored(data, row):
            raise Changed
        return data

    def map(self, row: Row, size: tuple[int, int]) -> Decoded:
        """The map of a part, whose picture has this width and height.

        Raises Misfit, or a Failure or UserError if it cannot be read.
        """
        location = self.out.map(row["model_id"], row["image_id"])
        decoded = map_png.decode(fetch(uris.make(location), None, None, self.fetch))
        drawn = map_png.picture_size(decoded, self.input, size)
        if drawn != size:
            raise Misfit(
                f"The anomaly map is left out: it was drawn for a picture of "
                f"{drawn[0]} x {drawn[1]} px, and this one has {size[0]} x {size[1]}."
            )
        return decoded


def _is_scored(data: bytes, row: Row) -> bool:
    return hashlib.sha256(data).hexdigest() == str(row["content_sha256"])


def members_of(rows: Sequence[Row], inventories: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Image id -> `member` and `bytes` of rows in archives, as far as inventories still exist."""
    members = [row for row in rows if "#" in row["uri"]]
    wanted = pa.array([row["image_id"] for row in members], pa.string())
    addresses = {row["uri"] for row in members}
    found: dict[str, dict[str, Any]] = {}
    for location in dict.fromkeys(inventories if len(wanted) else ()):
        try:
            with parquet.opened(location) as table:
                groups = parquet.row_groups_with(table, "uri", addresses)
                columns = ["image_id", "member", "bytes"]
                for batch in table.iter_batches(2**16, groups, columns):
                    chosen = batch.filter(pc.is_in(batch["image_id"], wanted))
                    found |= {entry["image_id"]: entry for entry in chosen.to_pylist()}
        except UserError:
            continue  # it was removed; members are then looked up by name
    return found
