"""Inventory rows to pixels: fetch, hash, decode and resize each image; a failure becomes a row."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ops.archives.fetch import FetchSettings, change_time_note, fetch
from ops.archives.views import Views, detector_name
from ops.failure import Failure
from ops.images.byte_budget import ByteBudget
from ops.images.content_index import Contents
from ops.images.decode import DecodeSettings, Picture, decode
from ops.images.inspection import InspectionMask
from ops.images.packed_pixels import Bytes, column
from ops.images.resize import InputSettings, pack, resize, tiling
from ops.images.tiles import TILE_BITS

#: The temporary status of an image whose content was scored under another name.
KNOWN = "known"
#: The columns that `Read` adds to the rows of an inventory.
READ = pa.schema(
    [
        ("status", pa.string()),
        ("reason", pa.string()),
        ("content_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bit_depth", pa.int8()),
        ("channels", pa.int8()),
        ("pixels", pa.large_binary()),
        ("further_pixels", pa.large_binary()),
        ("retries", pa.int32()),
    ]
)
#: Columns of packed pixels.
_PACKED = ("pixels", "further_pixels")
#: Columns of an inventory that say what to read.
_NEEDED = ("uri", "bytes", "version", "member", "product", "view", "problem")


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """The threads of this process that read: starting them takes as long as a small image."""
    return ThreadPoolExecutor(threads, thread_name_prefix="read")


class PixelBudget:
    """Bounds how many pixels the threads of a process decode at once, about 14 bytes each.

    An image that is larger than the whole budget is decoded alone.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels, self._used = pixels, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserved(self, pixels: int) -> Iterator[None]:
        """Wait until so many pixels fit into the budget, and reserve them in the context."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._pixels)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


#: Bytes that a pixel takes while it is decoded, at most.
_DECODING = 14
#: Eight images of four megapixels at once, but only one of a hundred megapixels.
_BUDGET = PixelBudget(2**25)
#: Bytes of files and of whole pictures that a process reads at once, besides one picture.
_PICTURES = 2**29
#: Bytes of whole pictures that are handed on together, the last of them not counted.
_PIECE = 2**25


@dataclass(frozen=True)
class Read:
    """Turns rows of an inventory into rows with pixels, or with a status and a reason.

    `products`: only images of these are read; others get status `unknown_product`. None reads all.
    `depths`: bit depths of the images that the detector of each product was fitted on; images of
    another depth are scaled by their own, and a note says so. With separate `views` both name
    detectors, see `ops.archives.views`.
    `masks`: inspection masks by detector; what lies outside of them is replaced by grey.
    `known`: images with these contents are not decoded; their rows get the hash and status `KNOWN`.
    `further`: other inputs of the same picture, packed one behind the other into a column of their
    own. None of them is tiled.
    """

    input: InputSettings
    decode: DecodeSettings
    fetch: FetchSettings
    products: Collection[str] | None = None
    known: Contents | None = None
    depths: Mapping[str, Collection[int]] = field(default_factory=dict)
    threads: int = 8
    views: Views = "pooled"
    masks: Mapping[str, InspectionMask] = field(default_factory=dict)
    further: tuple[InputSettings, ...] = ()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One row out for every row in, in the same order.

        All inputs are in memory together: whole pictures are read by `pieces`.
        """
        # Reads wait, and decoders release the GIL.
        read = list(_pool(self.threads).map(self._read_row, _wanted(rows)))
        return _with_read(rows, read)

    def pieces(self, rows: pa.Table) -> Iterator[pa.Table]:
        """As one call for all rows, in parts of the rows of bounded bytes.

        What is read and was not handed on takes at most `_PICTURES` bytes besides one picture,
        however large pictures are. A part has `_PIECE` bytes, but for its last picture; there is
        one at least.
        """
        budget, done = ByteBudget(_PICTURES), 0
        wanted = _wanted(rows)
        futures = deque(
            _pool(self.threads).submit(self._read_row, row, functools.partial(budget.hold, number))
            for number, row in enumerate(wanted)
        )
        piece: list[dict[str, Any]] = []
        try:
            for number in range(len(wanted)):
                piece.append(futures.popleft().result())
                if sum(map(_bytes_of, piece)) >= _PIECE:
                    yield _with_read(rows.slice(done, len(piece)), piece)
                    done, piece = number + 1, []
                budget.hand_on(number + 1)
            if piece or not wanted:
                yield _with_read(rows.slice(done), piece)
        finally:
            budget.end()
            for future in futures:
                future.cancel()

    def _read_row(
        self, row: dict[str, Any], hold: Callable[[int], object] | None = None
    ) -> dict[str, Any]:
        out: dict[str, Any] = {"status": "ok", "retries": 0}
        try:
            self._read(row, out, hold)
        except Failure as failure:
            out |= {"status": failure.status, "reason": failure.reason}
        if hold:
            hold(_bytes_of(out))
        return out

    def _read(
        self, row: dict[str, Any], out: dict[str, Any], hold: Callable[[int], object] | None
    ) -> None:
        def count_retry() -> None:
            out["retries"] += 1

        if row["problem"]:
            raise Failure("unreadable", row["problem"])
        detector = detector_name(row, self.views) if row["product"] is not None else None
        if self.products is not None and detector not in self.products:
            known = ", ".join(sorted(self.products)[:10])
            raise Failure(
                "unknown_product", f"the model has detectors for {known}, not {detector!r}"
            )
        if hold:
            hold(row["bytes"] or 0)
        place = row["uri"], row["member"], row["bytes"]
        data = fetch(*place, self.fetch, count_retry, row.get("version"))
        content = hashlib.sha256(data).hexdigest()
        out["content_sha256"] = content
        notes = [change_time_note(row["uri"], row.get("version"))]
        out["reason"] = notes[0] or None
        if self.known is not None and self.known.has(content, str(detector)):
            out["status"] = KNOWN
            return
        with contextlib.ExitStack() as stack:

            def admit(pixels: int) -> None:
                if hold:
                    hold(len(data) + _DECODING * pixels)
                else:
                    stack.enter_context(_BUDGET.reserved(pixels))

            picture = decode(data, self.decode, admit)
            if mask := self.masks.get(str(detector)):
                for each in (self.input, *self.further):
                    mask.check(picture.width, picture.height, each)
                picture = mask.covered(picture)
            pixels = resize(picture, self.input)
            others = [pack(resize(picture, each)) for each in self.further]
        if self.input.tiled:
            _check_tiles(picture, self.input)
        out |= {"width": picture.width, "height": picture.height, "bit_depth": picture.bit_depth}
        out["channels"] = 1 if pixels.ndim == 2 else 3
        out["pixels"] = pack(pixels)
        if others:
            out["further_pixels"] = np.concatenate(others)
        fitted = self.depths.get(str(detector), ())
        notes += [picture.note, _other_depth(picture.bit_depth, fitted)]
        out["reason"] = "; ".join(filter(None, notes)) or None


def _wanted(rows: pa.Table) -> list[dict[str, Any]]:
    wanted: list[dict[str, Any]] = rows.select(
        [name for name in _NEEDED if name in rows.schema.names]
    ).to_pylist()
    return wanted


def _with_read(rows: pa.Table, read: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows with the columns `READ`."""
    for field_ in READ:
        values = [row.get(field_.name) for row in read]
        added = column(values) if field_.name in _PACKED else pa.array(values, field_.type)
        rows = rows.append_column(field_, added)
    return rows


def _bytes_of(row: Mapping[str, Any]) -> int:
    packed: list[Bytes | None] = [row.get(name) for name in _PACKED]
    return sum(len(pixels) for pixels in packed if pixels is not None)


def _check_tiles(picture: Picture, settings: InputSettings) -> None:
    """Raise Failure if the tiles of a picture cannot be numbered."""
    count = tiling(picture.width, picture.height, settings).total
    if count > 2**TILE_BITS:
        raise Failure(
            "too_large",
            f"{picture.width} x {picture.height} has {count} tiles, more than the limit of "
            f"{2**TILE_BITS}; fit with a lower input.overlap or input.scale",
        )


def _other_depth(depth: int, fitted: Collection[int]) -> str:
    if not fitted or depth in fitted:
        return ""
    depths = ", ".join(map(str, sorted(fitted)))
    return f"it has {depth} bits, and the detector was fitted on images of {depths} bits"
