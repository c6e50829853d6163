"""Streams that break off, in place of Ray's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

from pipelines.scoring import score


class Broken:
    """A chain whose streams each give two rows, and then lose a block."""

    resources = SimpleNamespace(batch=1)

    def __init__(self, whole_from: int) -> None:
        self.begun: list[list[int]] = []
        self.whole_from = whole_from

    def stream(self, rows):
        self.begun.append(rows)
        return SimpleNamespace(context=SimpleNamespace(), rows=rows)


def scored(monkeypatch, chain: Broken) -> list[int]:
    """What comes of ten rows."""
    missing = list(range(10))

    def batches(stream):
        assert stream.context.max_errored_blocks == -1
        whole = len(chain.begun) >= chain.whole_from
        yield from stream.rows if whole else stream.rows[:2]
        if not whole:
            raise ray.exceptions.ObjectLostError("a block", None, "")

    monkeypatch.setattr(score, "slices", lambda _, rows, __: (rows,) if rows else None)
    monkeypatch.setattr(score, "batches", batches)
    chunks = SimpleNamespace(missing=lambda: iter(missing))
    found = []
    for row in score._streamed(SimpleNamespace(inventory=None), chain, chunks):
        found.append(row)
        missing.remove(row)
    return found


@pytest.mark.parametrize("whole_from", [1, 2, 3])
def test_a_stream_that_lost_a_block_begins_anew_with_what_is_missing(monkeypatch, whole_from):
    chain = Broken(whole_from)
    assert scored(monkeypatch, chain) == list(range(10))
    assert [len(rows) for rows in chain.begun] == [10, 8, 6][:whole_from]


def test_what_breaks_off_again_and_again_is_left_to_the_rescue(monkeypatch):
    chain = Broken(9)
    assert scored(monkeypatch, chain) == list(range(6))
    assert len(chain.begun) == 3
