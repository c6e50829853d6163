"""The pictures of a report's parts: each image as it was scored, and its map laid over it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ops.archives.fetch import FetchSettings, fetch
from ops.archives.views import Views, detector_name
from ops.errors import UserError
from ops.failure import Failure
from ops.images.decode import DecodeSettings, Picture, decode
from ops.images.resize import InputSettings
from ops.results import map_png, overlays
from ops.results.map_png import Decoded
from ops.storage import parquet, uris
from ops.storage.paths import Out
from pipelines.reports.report_queries import Row

#: Limits the memory for images, which are decoded at full size before they are shrunk.
_THREADS = 4


class Pictures(NamedTuple):
    """The pictures of one part as data URIs. An empty one is missing; `note` tells why."""

    image: str = ""
    overlay: str = ""
    close_up: str = ""
    note: str = ""


class Part(NamedTuple):
    """A row of the score table, and its pictures."""

    row: Row
    pictures: Pictures


class Changed(Exception):
    """The bytes at an address are not those that were scored."""


class Misfit(Exception):
    """A map was drawn for a picture of another shape."""


class PartPictures(NamedTuple):
    """Draws pictures of rows of a score table, `side` pixels wide or high, `bytes_each` large."""

    out: Out
    thresholds: Mapping[str, float | None]
    input: InputSettings
    """That of the model, from which follows how a map lies on its picture."""
    decode: DecodeSettings
    fetch: FetchSettings
    side: int
    bytes_each: int
    views: Views = "pooled"

    def parts(self, rows: Sequence[Row], inventories: Sequence[str]) -> Iterator[Part]:
        """The rows with their pictures, in the order in which their files are read.

        `inventories` are those of the rows' runs, which tell members of one name apart.
        """
        members = _members(rows, inventories)
        located = [(row, members.get(row["image_id"], {"member": None})) for row in rows]
        located.sort(key=lambda pair: _reading_order(*pair))
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from pool.map(lambda pair: Part(pair[0], self._draw(*pair)), located)

    def _draw(self, row: Row, member: Mapping[str, Any]) -> Pictures:
        """The image, if its file is unchanged since it was scored, and its map, if it has one."""
        try:
            picture = decode(self._bytes(row, member), self.decode)
        except Changed:
            return Pictures(note="No picture: the file has changed since it was scored.")
        except Failure as failure:
            return Pictures(note=f"No picture: {failure.reason}.")
        small = overlays.thumbnail(picture, self.side)
        image = overlays.data_uri(small, self.bytes_each)
        close_up = ""
        if max(picture.width, picture.height) > 2 * self.side:
            detail = overlays.close_up(picture, row["peak_x"], row["peak_y"], self.side)
            close_up = overlays.data_uri(detail, self.bytes_each)
        if not row["map_uri"]:
            return Pictures(image, "", close_up, "No anomaly map was written.")
        try:
            decoded_map = self._map(row, picture)
        except Misfit as misfit:
            return Pictures(image, "", close_up, str(misfit))
        except (Failure, UserError):
            return Pictures(image, "", close_up, "The anomaly map cannot be read.")
        threshold = self.thresholds.get(detector_name(row, self.views))
        overlay = overlays.thumbnail_overlay(small, picture, decoded_map, threshold)
        return Pictures(image, overlays.data_uri(overlay, self.bytes_each), close_up)

    def _bytes(self, row: Row, member: Mapping[str, Any]) -> bytes:
        """The bytes that were scored: of the member, or by name if its archive was rewritten.

        Raises Changed if there are others now, or a Failure.
        """
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

    def _map(self, row: Row, picture: Picture) -> Decoded:
        """The map of a picture. Raises Misfit, or a Failure or UserError if it cannot be read."""
        location = self.out.map(row["model_id"], row["image_id"])
        decoded = map_png.decode(fetch(uris.make(location), None, None, self.fetch))
        drawn = map_png.picture_size(decoded, self.input, (picture.width, picture.height))
        if drawn != (picture.width, picture.height):
            raise Misfit(
                f"The anomaly map is left out: it was drawn for a picture of "
                f"{drawn[0]} x {drawn[1]} px, and this one has "
                f"{picture.width} x {picture.height}."
            )
        return decoded


def _is_scored(data: bytes, row: Row) -> bool:
    return hashlib.sha256(data).hexdigest() == str(row["content_sha256"])


def _reading_order(row: Row, member: Mapping[str, Any]) -> tuple[str, int, str]:
    return uris.container(row["uri"]), member["member"] or 0, row["image_id"]


def _members(rows: Sequence[Row], inventories: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Image id -> `member` and `bytes` of rows in archives, as far as inventories still exist."""
    wanted = pa.array([row["image_id"] for row in rows if "#" in row["uri"]], pa.string())
    found: dict[str, dict[str, Any]] = {}
    for location in dict.fromkeys(inventories if len(wanted) else ()):
        try:
            with parquet.opened(location) as table:
                for batch in table.iter_batches(2**16, columns=["image_id", "member", "bytes"]):
                    chosen = batch.filter(pc.is_in(batch["image_id"], wanted))
                    found |= {entry["image_id"]: entry for entry in chosen.to_pylist()}
        except UserError:
            continue  # it was removed; members are then looked up by name
    return found
