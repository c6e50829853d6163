"""Crops of the pictures of parts, and the colours of their maps, as files for a browser."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from ops.archives.fetch import FetchSettings
from ops.archives.views import detector_name, views_of
from ops.errors import UserError
from ops.failure import Failure
from ops.images.decode import DecodeSettings, Picture
from ops.images.resize import InputSettings
from ops.results import overlays
from ops.results.overlays import Pixels8
from ops.storage.paths import Out
from pipelines.reports.part_files import Changed, Misfit, PartFiles, members_of

#: Longest side of a picture that is sent.
LARGEST = 4096
_NOT_IN_ARCHIVE: Mapping[str, Any] = {"member": None}


class NoPicture(UserError):
    """A picture or a map cannot be shown; the sentence says why."""


class _Kept(NamedTuple):
    picture: Picture
    is_full: bool
    """Whether it has the size of the file, and not a fraction of it."""

    def is_enough(self, least_side: int | None) -> bool:
        """Whether it need not be decoded again for a view of so many pixels; None: for all."""
        if least_side is None:
            return self.is_full
        return self.is_full or max(self.picture.width, self.picture.height) >= least_side


class Pictures:
    """Decoded pictures of parts, the last used ones kept up to `cache_bytes`.

    At most `decoders` pictures are decoded at once. Several threads may use it. For a view of a
    whole JPEG a fraction of its size is decoded, which is replaced when a detail is asked for.
    """

    def __init__(
        self,
        out: Out,
        fetch: FetchSettings,
        cache_bytes: int = 2**29,
        decoders: int = 2,
        since: str = "it was scored",
    ) -> None:
        """`since` says in errors when the bytes were read that rows have the hash of."""
        self._since = since
        self._out, self._fetch, self._most = out, fetch, cache_bytes
        self._decoders = threading.BoundedSemaphore(decoders)
        self._lock = threading.Lock()
        self._cached: OrderedDict[str, _Kept] = OrderedDict()
        self._loading: dict[str, threading.Lock] = {}
        self._members: dict[str, dict[str, Any]] = {}

    @property
    def cached_bytes(self) -> int:
        """Bytes of the pixels that are kept."""
        with self._lock:
            return sum(kept.picture.pixels.nbytes for kept in self._cached.values())

    def crop(
        self,
        row: Mapping[str, Any],
        record: Mapping[str, Any],
        box: tuple[int, int, int, int] | None,
        side: int,
        lossless: bool = False,
    ) -> bytes:
        """A JPEG, or a PNG, of a rectangle of a part's picture, or of all of it.

        `box` is left, top, right and bottom in its pixels; what lies outside is cut off. The result
        is at most `side` pixels wide and high. `record` is that of the row's run. Raises NoPicture.
        """
        side = min(side, LARGEST)
        if box is None:
            whole = self.picture(row, record, side)
            return _file(overlays.thumbnail(whole, side), lossless)
        picture = self.picture(row, record)
        left, top, right, bottom = box
        left, top = max(0, left), max(0, top)
        right, bottom = min(right, picture.width), min(bottom, picture.height)
        if right <= left or bottom <= top:
            size = f"{picture.width} x {picture.height}"
            raise NoPicture(f"{box} lies outside of the picture of {size} px")
        return _file(overlays.crop(picture, (left, top, right, bottom), side), lossless)

    def heat(self, row: Mapping[str, Any], record: Mapping[str, Any], side: int) -> bytes:
        """A PNG of the colours of a part's map, transparent below the threshold.

        It covers the whole picture. Raises NoPicture.
        """
        if not row["map_uri"]:
            raise NoPicture("no anomaly map was written of this part")
        size = row["width"], row["height"]  # a row with a map has them; nothing is decoded
        try:
            decoded = self._files(record).map(row, size)
        except Misfit as misfit:
            raise NoPicture(str(misfit)) from None
        except Failure as failure:
            raise NoPicture(f"the anomaly map cannot be read: {failure.reason}") from None
        threshold = record.get("thresholds", {}).get(detector_name(row, views_of(record)))
        return overlays.to_png(overlays.heat(decoded, size, min(side, LARGEST), threshold))

    def _files(self, record: Mapping[str, Any]) -> PartFiles:
        settings = InputSettings(**record["input"]), DecodeSettings(**record["decode"])
        return PartFiles(self._out, *settings, self._fetch)

    def picture(
        self, row: Mapping[str, Any], record: Mapping[str, Any], least_side: int | None = None
    ) -> Picture:
        """The decoded picture of a row, whose record is that of its run. Raises NoPicture.

        With `least_side` it may be a fraction of its size, see `ops.images.decode`.
        """
        key = f"{row['run_id']}/{row['image_id']}"
        with self._lock:
            one_at_a_time = self._loading.setdefault(key, threading.Lock())
        with one_at_a_time:  # else every request of a new picture decodes it
            with self._lock:
                kept = self._cached.get(key)
                if kept is not None and kept.is_enough(least_side):
                    self._cached.move_to_end(key)
                    return kept.picture
            try:
                with self._decoders:
                    picture = self._read(row, record, least_side)
                is_full = (picture.width, picture.height) == (row["width"], row["height"])
                self._keep(key, _Kept(picture, is_full or least_side is None))
            finally:
                with self._lock:
                    self._loading.pop(key, None)
        return picture

    def _read(
        self, row: Mapping[str, Any], record: Mapping[str, Any], least_side: int | None
    ) -> Picture:
        if row["content_sha256"] is None:
            raise NoPicture(f"no picture was read: {row['reason'] or row['status']}")
        try:
            return self._files(record).picture(row, self._member(row, record), least_side)
        except Changed:
            raise NoPicture(f"the file has changed since {self._since}") from None
        except Failure as failure:
            raise NoPicture(failure.reason) from None

    def _member(self, row: Mapping[str, Any], record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where a member lies in its archive; an inventory is searched once for each part."""
        if "#" not in row["uri"]:
            return _NOT_IN_ARCHIVE
        if "member" in row:
            return row
        if row["image_id"] not in self._members:
            self._members |= members_of([row], [str(record["inventory"])])
        return self._members.get(row["image_id"], _NOT_IN_ARCHIVE)

    def _keep(self, key: str, kept: _Kept) -> None:
        """Keep a picture, and drop those used longest ago beyond the limit."""
        with self._lock:
            self._cached[key] = kept
            self._cached.move_to_end(key)
            size = sum(each.picture.pixels.nbytes for each in self._cached.values())
            while size > self._most and len(self._cached) > 1:
                _, dropped = self._cached.popitem(last=False)
                size -= dropped.picture.pixels.nbytes


def _file(pixels: Pixels8, lossless: bool) -> bytes:
    return overlays.to_png(pixels) if lossless else overlays.to_jpeg(pixels, 90)
