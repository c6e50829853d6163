"""Some hundreds of broken images, each a row; `python -m tests.faults mutations` reads 10,000."""

import pytest

from tests.faults import reading
from tests.faults.mutations import MUTATIONS, SUFFIXES, mutant

pytestmark = [pytest.mark.slow, pytest.mark.alone]
IMAGES, SECONDS, MEMORY = 300, 10, 3 * 2**30
#: What no decoder can see: these formats hold no checksum.
BLIND = {"JPEG", "TIFF", "BMP", "WEBP"}
DAMAGED = set(MUTATIONS) - {"untouched", "wrong suffix", "EXIF rotation", "garbage behind"}


@pytest.fixture(scope="module")
def outcomes():
    """All of them, read once; that every one ends as a row with a sentence is asserted inside."""
    return list(reading.rows(seed=7, count=IMAGES))


def test_every_kind_of_damage_is_among_them(outcomes):
    assert len(outcomes) == IMAGES
    assert {outcome.mutant.mutation for outcome in outcomes} == set(MUTATIONS)
    assert {outcome.mutant.kind for outcome in outcomes} == set(SUFFIXES)
    kinds = {"ok", "unreadable", "unsupported", "too_large"}
    assert {outcome.status for outcome in outcomes} == kinds


def test_a_number_always_makes_the_same_file():
    real = reading.photographs()
    assert [mutant(7, n, real) for n in range(50)] == [mutant(7, n, real) for n in range(50)]
    assert mutant(7, 0) != mutant(8, 0)


def test_the_same_files_become_the_same_rows_again(outcomes):
    # In other batches, among other images, and so in another order.
    again = {o.mutant.name: o for o in reading.rows(seed=7, count=60)}
    assert len(again) == 60
    for one in outcomes:
        if found := again.get(one.mutant.name):
            rows = [(o.mutant, o.status, o.reason, o.sha256, o.score) for o in (one, found)]
            assert rows[0] == rows[1]


def test_what_is_whole_is_scored_and_what_was_read_has_its_hash(outcomes):
    for outcome in outcomes:
        assert (outcome.score is not None) == (outcome.status == "ok")
        assert outcome.sha256  # `reading` compared it with the file's
        if outcome.mutant.mutation not in DAMAGED:
            assert (outcome.status, outcome.changed) == ("ok", False), outcome.mutant.name
        if outcome.mutant.mutation in {"animated, pages", "float, 32 bit"}:
            assert outcome.status == "unsupported"


def test_damage_that_a_file_can_tell_is_told(outcomes):
    changed = [outcome.mutant for outcome in outcomes if outcome.changed]
    assert {one.kind for one in changed} <= BLIND | {"PNG"}
    # Only a whole head of another format makes a picture of its own of what was a PNG.
    assert {m.mutation for m in changed if m.kind == "PNG"} <= {"head of another format"}
    # A file that was cut short is refused, unless all that it lost is words behind the pixels.
    assert "cut short" not in {one.mutation for one in changed}


def test_none_takes_long_or_much_memory(outcomes):
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    assert slowest.seconds < SECONDS, slowest.mutant.name
    assert max(outcome.memory for outcome in outcomes) < MEMORY
