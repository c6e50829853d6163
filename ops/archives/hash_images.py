"""Inventory rows to hashes of their bytes, without decoding them; a failure becomes a row."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ops.archives.fetch import FetchSettings, fetch
from ops.failure import Failure

#: The columns that `HashImages` adds to the rows of an inventory.
HASHED = pa.schema(
    [("status", pa.string()), ("reason", pa.string()), ("content_sha256", pa.string())]
)


@dataclass(frozen=True)
class HashImages:
    """Reads and hashes the bytes of images; status `ok` means that they were read."""

    fetch: FetchSettings
    threads: int = 8

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One row out for every row in, in the same order."""
        with ThreadPoolExecutor(self.threads) as pool:
            hashed = pa.Table.from_pylist(list(pool.map(self._hash, rows.to_pylist())), HASHED)
        for name in HASHED.names:
            rows = rows.append_column(name, hashed[name])
        return rows

    def _hash(self, row: dict[str, Any]) -> dict[str, Any]:
        place = row["uri"], row["member"], row["bytes"]
        try:
            data = fetch(*place, self.fetch, version=row["version"])
        except Failure as failure:
            return {"status": failure.status, "reason": failure.reason}
        return {"status": "ok", "content_sha256": hashlib.sha256(data).hexdigest()}
