"""Inventory rows to pixels: fetch, hash, decode, resize, one image at a time, failures as rows."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ops.images.content_index import Contents
from ops.images.decode import DecodeSettings, decode
from ops.images.failure import Failure
from ops.images.fetch import FetchSettings, fetch
from ops.images.resize import InputSettings, pack, resize

#: The status, until its row is completed, of an image whose bytes were scored under another name.
KNOWN = "known"
#: What reading adds to the columns of its rows.
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


class PixelBudget:
    """Bounds the pixels that the threads of a process work on at once, each some 14 bytes.

    A picture that is larger than all of the room has it to itself.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels, self._taken = pixels, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self, pixels: int) -> Iterator[None]:
        """Wait for so much room, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._pixels)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


#: Eight pictures of four megapixels at once, but of a hundred one after the other.
_ROOM = PixelBudget(2**25)


@dataclass(frozen=True)
class Read:
    """Turns rows of an inventory into rows with pixels, or with a status and a reason.

    `products`: read only images of these; others get `unknown_product`. None reads all.
    `known`: contents that are not decoded; their rows end with the hash, and status `KNOWN`.
    """

    input: InputSettings
    decode: DecodeSettings
    fetch: FetchSettings
    products: Collection[str] | None = None
    known: Contents | None = None
    threads: int = 8

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One row out for every row in, in the same order."""
        with ThreadPoolExecutor(self.threads) as pool:  # reading waits; decoders release the lock
            read = pa.Table.from_pylist(list(pool.map(self._one, rows.to_pylist())), READ)
        for name in READ.names:
            rows = rows.append_column(name, read[name])
        return rows

    def _one(self, row: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {"status": "ok", "retries": 0}
        try:
            self._read(row, out)
        except Failure as failure:
            out |= {"status": failure.status, "reason": failure.reason}
        return out

    def _read(self, row: dict[str, Any], out: dict[str, Any]) -> None:
        def again() -> None:
            out["retries"] += 1

        if row["problem"]:
            raise Failure("unreadable", row["problem"])
        if self.products is not None and row["product"] not in self.products:
            known = ", ".join(sorted(self.products)[:10])
            raise Failure("unknown_product", f"the model knows {known}, not {row['product']!r}")
        data = fetch(row["uri"], row["position"], row["bytes"], self.fetch, again)
        content = hashlib.sha256(data).hexdigest()
        out["content_sha256"] = content
        if self.known is not None and self.known.has(content, row["product"]):
            out["status"] = KNOWN
            return
        with contextlib.ExitStack() as held:
            picture = decode(data, self.decode, lambda n: held.enter_context(_ROOM.held(n)))
            pixels = resize(picture, self.input)
        out |= {"width": picture.width, "height": picture.height, "bit_depth": picture.bit_depth}
        out |= {"channels": 1 if pixels.ndim == 2 else 3, "pixels": pack(pixels)}
