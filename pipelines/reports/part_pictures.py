"""The pictures of a report's parts: each image as it was scored, and its map laid over it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from ops.archives.fetch import FetchSettings
from ops.archives.views import Views, detector_name
from ops.errors import UserError
from ops.failure import Failure
from ops.images.decode import DecodeSettings
from ops.images.resize import InputSettings
from ops.results import overlays
from ops.storage import uris
from ops.storage.paths import Out
from pipelines.reports.part_files import Changed, Misfit, PartFiles, members_of
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
        members = members_of(rows, inventories)
        located = [(row, members.get(row["image_id"], {"member": None})) for row in rows]
        located.sort(key=lambda pair: _reading_order(*pair))
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from pool.map(lambda pair: Part(pair[0], self._draw(*pair)), located)

    def _draw(self, row: Row, member: Mapping[str, Any]) -> Pictures:
        """The image, if its file is unchanged since it was scored, and its map, if it has one."""
        try:
            picture = self._files.picture(row, member)
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
            decoded_map = self._files.map(row, (picture.width, picture.height))
        except Misfit as misfit:
            return Pictures(image, "", close_up, str(misfit))
        except (Failure, UserError):
            return Pictures(image, "", close_up, "The anomaly map cannot be read.")
        threshold = self.thresholds.get(detector_name(row, self.views))
        overlay = overlays.thumbnail_overlay(small, picture, decoded_map, threshold)
        return Pictures(image, overlays.data_uri(overlay, self.bytes_each), close_up)

    @property
    def _files(self) -> PartFiles:
        return PartFiles(self.out, self.input, self.decode, self.fetch)


def _reading_order(row: Row, member: Mapping[str, Any]) -> tuple[str, int, str]:
    return uris.container(row["uri"]), member["member"] or 0, row["image_id"]
