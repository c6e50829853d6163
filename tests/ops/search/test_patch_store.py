"""Dropped vectors lie within the covering radius that a bounded store states."""

from __future__ import annotations

import pytest
import torch

from ops.distributed import Alone
from ops.errors import UserError
from ops.search.coreset import greedy
from ops.search.patch_store import BoundedPatchStore, PatchStore, bytes_per_vector


def parts(seed: int = 0, count: int = 12, size: int = 50, spread: float = 1.0):
    """Vectors in parts as images give them: vectors, projections and ids."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(24, 8, generator=generator)
    for number in range(count):
        vectors = torch.randn(size, 24, generator=generator) * spread**number
        yield vectors, vectors @ matrix, torch.arange(number * size, (number + 1) * size)


def filled(store: PatchStore, given) -> PatchStore:
    for part in given:
        store.add(*part)
    store.close()
    return store


def test_a_store_hands_out_everything_in_the_order_of_ids():
    given = list(parts())
    store = filled(PatchStore(), reversed(given))
    ids, projected = store.points(8)
    assert ids.tolist() == list(range(600))
    assert torch.equal(projected, torch.cat([part[1] for part in given]))
    rows = torch.tensor([0, 49, 50, 333, 599])
    assert torch.equal(store.vectors(rows, 24), torch.cat([part[0] for part in given])[rows])
    assert store.covering_radius == 0


def test_an_empty_store_has_no_points():
    store = filled(PatchStore(), [])
    ids, projected = store.points(8)
    assert (len(ids), projected.shape) == (0, (0, 8))
    assert store.vectors(torch.empty(0, dtype=torch.int64), 24).shape == (0, 24)


@pytest.mark.parametrize("spread", [1.0, 1.4, 0.7])
@pytest.mark.parametrize("room", [60, 130, 250])
def test_dropped_vectors_lie_within_the_covering_radius(spread, room):
    given = list(parts(spread=spread))
    store = filled(BoundedPatchStore(2 * room * bytes_per_vector(24, 8)), given)
    ids, picks = store.points(8)
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert len(ids) <= room
    everything = torch.cat([part[1] for part in given])
    assert torch.equal(picks, everything[ids])
    assert torch.equal(
        store.vectors(torch.arange(len(ids)), 24), torch.cat([part[0] for part in given])[ids]
    )
    distance = torch.cdist(everything.double(), picks.double()).amin(dim=1).max()
    assert 0 < float(distance) <= store.covering_radius * (1 + 1e-5)


def test_vectors_that_fit_are_all_kept():
    store = filled(BoundedPatchStore(2 * 700 * bytes_per_vector(24, 8)), parts())
    assert len(store.points(8)[0]) == 600
    assert store.covering_radius == 0


def test_buffers_end_with_about_the_same_radius_however_different_they_are():
    """One of twelve buffers is a hundred times as wide: it gets most of the room."""
    given = list(parts())
    vectors, projected, numbers = given[6]
    given[6] = vectors * 100, projected * 100, numbers
    room = 60
    store = filled(BoundedPatchStore(2 * room * bytes_per_vector(24, 8)), given)
    ids, _ = store.points(8)
    wide = ((ids >= 300) & (ids < 350)).sum()
    assert int(wide) >= 20
    equal_shares = greedy(given[6][1], numbers, room // len(given), Alone())
    assert store.covering_radius < 0.7 * equal_shares.radius


def test_memory_for_less_than_two_images_is_an_error_that_names_the_memory_needed():
    store = BoundedPatchStore(1000)
    with pytest.raises(UserError, match=r"1000 bytes do not hold .* two images; raise .* at least"):
        store.add(*next(parts()))
