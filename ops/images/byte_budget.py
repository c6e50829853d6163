"""Bounds the bytes of images that are read at once, while they are handed on in their order."""

from __future__ import annotations

import threading


class Abandoned(Exception):
    """Nobody takes the images any more."""


class ByteBudget:
    """Bounds the bytes that images hold from their fetch until they are handed on.

    Images have numbers, and are handed on in this order. The first image that was not handed on yet
    may hold any number of bytes, so that none waits for ever; all others may only hold what fits
    into the budget beside everything else. So all together hold at most `limit` bytes and one
    image. What was handed on does not count.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._first, self._ended = limit, 0, False
        self._held: dict[int, int] = {}
        self._changed = threading.Condition()

    def hold(self, number: int, size: int) -> None:
        """Wait until an image may hold `size` bytes in place of those it held before.

        Raises Abandoned after `end`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._may_hold(number, size))
            if self._ended:
                raise Abandoned
            self._held[number] = size
            self._changed.notify_all()

    def _may_hold(self, number: int, size: int) -> bool:
        before = self._held.get(number, 0)
        fits = sum(self._held.values()) - before + size <= self._limit
        return fits or size <= before or number <= self._first

    def hand_on(self, first: int) -> None:
        """Release the bytes of all images before the image `first`."""
        with self._changed:
            self._first = first
            self._held = {n: size for n, size in self._held.items() if n >= first}
            self._changed.notify_all()

    def end(self) -> None:
        """Let no image hold bytes from now on."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
