"""An index of image contents that were scored before under any name, in eight bytes each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: The same as `key`, as an expression of DuckDB's SQL with an expression for the detector.
KEY = "md5_number_lower(content_sha256 || '/' || {})"


def key(content_sha256: str, detector: str) -> int:
    """A 64-bit hash of a content and the name of its detector."""
    digest = hashlib.md5(f"{content_sha256}/{detector}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[8:], "little")


@dataclass(frozen=True)
class Contents:
    """A set of N contents. `has` is wrong for one new content in 2^64 / N: verify a hit."""

    keys: NDArray[np.uint64]
    """The sorted `key` of each content (N,)."""

    def has(self, content_sha256: str, detector: str) -> bool:
        """Whether the set seems to contain a content."""
        wanted = np.uint64(key(content_sha256, detector))
        place = int(np.searchsorted(self.keys, wanted))
        return place < len(self.keys) and bool(self.keys[place] == wanted)
