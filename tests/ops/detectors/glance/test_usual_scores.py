"""Scores compared with those of good images at the same place."""

from __future__ import annotations

import torch

from ops.detectors.glance.usual_scores import UsualScores
from ops.distributed import Alone, Group
from tests.ops.threads import together


def drawn(count: int, shape=(5, 7), seed: int = 0) -> torch.Tensor:
    """Scores of good images, larger and more spread at the border."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.full(shape, 3.0)
    spread[1:-1, 1:-1] = 1.0
    return 10 * spread + spread * torch.randn(count, *shape, generator=generator)


def learned(scores: torch.Tensor) -> UsualScores:
    usual = UsualScores(scores.shape[1:])
    usual.learn(list(scores), Alone())
    return usual


def test_scores_of_all_places_have_one_mean_and_one_spread_afterwards():
    good = drawn(4000)
    usual = learned(good)
    compared = torch.stack([usual(image) for image in good])
    level = torch.full((5, 7), float(good.mean()))
    torch.testing.assert_close(compared.mean(0), level, rtol=0.01, atol=0)
    spread = torch.full((5, 7), float(good.var(0).mean().sqrt()))
    torch.testing.assert_close(compared.std(0), spread, rtol=0.01, atol=0)


def test_nothing_changes_before_it_is_learned():
    scores = drawn(1)[0]
    assert torch.equal(UsualScores((5, 7))(scores), scores)
    assert torch.equal(UsualScores((3, 3))(scores), scores)


def test_few_images_are_drawn_to_mirrored_places_and_these_to_all():
    one = torch.zeros(1, 4, 4)
    one[0, 0, 1] = 16.0
    mean = learned(one).mean
    # All places: 1. Mirrored ones, 4 values: (4 * 4 + 8 * 1) / 12 = 2; others (8 * 1) / 12.
    torch.testing.assert_close(mean[0, 1], torch.tensor((16 + 8 * 2.0) / 9))
    for mirrored in (mean[0, 2], mean[3, 1], mean[3, 2]):
        torch.testing.assert_close(mirrored, torch.tensor(8 * 2.0 / 9))
    torch.testing.assert_close(mean[1, 1], torch.tensor(8 * (8 / 12) / 9))


def test_another_grid_takes_interpolated_values_of_the_same_border():
    usual = UsualScores((3, 3))
    usual.mean.copy_(torch.tensor([[4.0, 4, 4], [4, 0, 4], [4, 4, 4]]))
    _, shift = usual.on((5, 5))
    level = usual.mean.mean()
    torch.testing.assert_close(level - shift[0], torch.full((5,), 4.0))
    torch.testing.assert_close(level - shift[2], torch.tensor([4.0, 2, 0, 2, 4]))


def test_scores_that_never_vary_stay_finite():
    usual = learned(torch.full((3, 4, 4), 0.5))
    assert torch.equal(usual(torch.full((4, 4), 0.5)), torch.full((4, 4), 0.5))
    assert bool(usual(torch.full((4, 4), 0.7)).isfinite().all())
    zeros = learned(torch.zeros(2, 4, 4))
    assert bool(zeros(torch.ones(4, 4)).isfinite().all())


def test_ranks_learn_what_one_worker_learns_even_without_an_image():
    good = drawn(6)
    parts = [UsualScores((5, 7)) for _ in range(3)]

    def program(group: Group):
        parts[group.rank].learn(list((good[:4], good[4:], good[:0])[group.rank]), group)

    together(3, program)
    for part in parts:
        torch.testing.assert_close(part.mean, learned(good).mean)
        torch.testing.assert_close(part.spread, learned(good).spread)
