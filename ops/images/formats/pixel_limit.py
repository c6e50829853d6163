"""Bounds the memory of a picture before it is allocated."""

from __future__ import annotations

from collections.abc import Callable

from ops.failure import Failure


class PixelLimit:
    """Allows one picture of at most so many pixels, after it was admitted once."""

    def __init__(self, max_pixels: int, admit: Callable[[int], object]) -> None:
        """`admit` gets the number of pixels, and may wait."""
        self._max_pixels, self._admit = max_pixels, admit
        self._admitted = False

    def allow(self, width: int, height: int, capacity: int = 2**62, kind: str = "file") -> None:
        """Return when a picture of this size may be decoded.

        `capacity` is the most pixels that the bytes of its file can hold. Raises Failure
        (unreadable, too_large).
        """
        if width <= 0 or height <= 0:
            raise Failure("unreadable", f"it has no pixels ({width} x {height})")
        if width * height > self._max_pixels:
            limit = f"more than the limit of {self._max_pixels} pixels"
            message = f"{width} x {height} is {limit}; raise --decode.max_pixels"
            raise Failure("too_large", message)
        if width * height > capacity:
            message = f"damaged (its bytes cannot hold {width} x {height} pixels of a {kind})"
            raise Failure("unreadable", message)
        if not self._admitted:  # a second attempt at a picture holds the memory of the first
            self._admitted = True
            self._admit(width * height)
