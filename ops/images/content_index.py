"""Contents that were scored before, whatever their names: eight bytes each, for many readers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: What `key` computes, in DuckDB's SQL.
KEY = "md5_number_lower(content_sha256 || '/' || product)"


def key(content_sha256: str, product: str) -> int:
    """64 bits that stand for a content as a picture of a product."""
    digest = hashlib.md5(f"{content_sha256}/{product}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[8:], "little")


@dataclass(frozen=True)
class Contents:
    """A set of contents. It may take a new one for known, once in 2^64 / N times: verify a hit."""

    keys: NDArray[np.uint64]
    """`key` of each, sorted, (N,)."""

    def has(self, content_sha256: str, product: str) -> bool:
        """Whether a content seems to be known."""
        wanted = np.uint64(key(content_sha256, product))
        place = int(np.searchsorted(self.keys, wanted))
        return place < len(self.keys) and bool(self.keys[place] == wanted)
