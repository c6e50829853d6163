"""Inventory rows to pixels: fetch, hash, decode and resize each image; a failure becomes a row."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ops.archives.fetch import FetchSettings, change_time_note, fetch
from ops.archives.views import Views, detector_name
from ops.failure import Failure
from ops.images.content_index import Contents
from ops.images.decode import DecodeSettings, decode
from ops.images.resize import InputSettings, pack, resize

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
        ("retries", pa.int32()),
    ]
)


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


#: Eight images of four megapixels at once, but only one of a hundred megapixels.
_BUDGET = PixelBudget(2**25)


@dataclass(frozen=True)
class Read:
    """Turns rows of an inventory into rows with pixels, or with a status and a reason.

    `products`: only images of these are read; others get status `unknown_product`. None reads all.
    `depths`: bit depths of the images that the detector of each product was fitted on; images of
    another depth are scaled by their own, and a note says so. With separate `views` both name
    detectors, see `ops.archives.views`.
    `known`: images with these contents are not decoded; their rows get the hash and status `KNOWN`.
    """

    input: InputSettings
    decode: DecodeSettings
    fetch: FetchSettings
    products: Collection[str] | None = None
    known: Contents | None = None
    depths: Mapping[str, Collection[int]] = field(default_factory=dict)
    threads: int = 8
    views: Views = "pooled"

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One row out for every row in, in the same order."""
        wanted = rows.select([name for name in _NEEDED if name in rows.schema.names])
        # Reads wait, and decoders release the GIL.
        read = list(_pool(self.threads).map(self._read_row, wanted.to_pylist()))
        for column in READ:
            values = [row.get(column.name) for row in read]
            rows = rows.append_column(column, pa.array(values, column.type))
        return rows

    def _read_row(self, row: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {"status": "ok", "retries": 0}
        try:
            self._read(row, out)
        except Failure as failure:
            out |= {"status": failure.status, "reason": failure.reason}
        return out

    def _read(self, row: dict[str, Any], out: dict[str, Any]) -> None:
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
            picture = decode(data, self.decode, lambda n: stack.enter_context(_BUDGET.reserved(n)))
            pixels = resize(picture, self.input)
        out |= {"width": picture.width, "height": picture.height, "bit_depth": picture.bit_depth}
        out |= {"channels": 1 if pixels.ndim == 2 else 3, "pixels": pack(pixels)}
        fitted = self.depths.get(str(detector), ())
        notes += [picture.note, _other_depth(picture.bit_depth, fitted)]
        out["reason"] = "; ".join(filter(None, notes)) or None


def _other_depth(depth: int, fitted: Collection[int]) -> str:
    if not fitted or depth in fitted:
        return ""
    depths = ", ".join(map(str, sorted(fitted)))
    return f"it has {depth} bits, and the detector was fitted on images of {depths} bits"
