"""Bit depths of the pictures of a fit: those of a product must be meant for one scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Depths:
    """Counts pictures by product and bit depth. `bit_depth` is the model's decode setting."""

    def __init__(self, bit_depth: int | None, earlier: Mapping[str, Mapping[str, int]]) -> None:
        """`earlier`: counts of the model that is grown, by product and depth."""
        self._bit_depth = bit_depth
        self._counts = {
            product: Counter({int(depth): count for depth, count in counts.items()})
            for product, counts in earlier.items()
        }
        self._examples: dict[tuple[str, int], str] = {}

    def add(self, product: str, depth: int, uri: str) -> None:
        """Count a picture."""
        self._counts.setdefault(product, Counter())[depth] += 1
        self._examples.setdefault((product, depth), uri)

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of pictures by product and depth, as a model records them."""
        return {
            product: {str(depth): counts[depth] for depth in sorted(counts)}
            for product, counts in self._counts.items()
        }

    def refusal(self) -> str:
        """Why the products cannot be fitted; empty if nothing speaks against it.

        A file of 16 bits holds a picture of any depth. Without the setting it is taken for one of
        16, which beside pictures of other depths is a guess: half of a product may be too dark.
        """
        if self._bit_depth is not None:
            return ""
        for product, counts in self._counts.items():
            if len(counts) > 1 and 16 in counts:
                rule = "files of 16 bits may use fewer, and would then be too dark"
                remedy = "give the bits that they use, such as --decode.bit_depth 12, or 16 for all"
                return f"{self._mixture(product)}; {rule}: {remedy}"
        return ""

    def warnings(self) -> list[str]:
        """A sentence for each product whose pictures differ in depth."""
        return [
            f"{self._mixture(product)}; each is scaled by its own depth"
            for product, counts in self._counts.items()
            if len(counts) > 1
        ]

    def _mixture(self, product: str) -> str:
        counts = self._counts[product]
        words = []
        for depth in sorted(counts):
            example = self._examples.get((product, depth))
            such = f", such as {example}" if example else ""
            words.append(f"{counts[depth]} of {depth} bits{such}")
        return f"the pictures of {product!r} differ in depth ({'; '.join(words)})"
