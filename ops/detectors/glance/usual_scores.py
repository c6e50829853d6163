"""What scores good images get at each place of a grid, and scores compared with that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.distributed import Group

#: Images that a prior counts for: a place's own scores outweigh those of its mirror images from so
#: many images on, and these outweigh the scores of all places.
_PRIOR = 8.0


class UsualScores(nn.Module):
    """Mean and spread of the scores (h, w) of good images at each place of a grid.

    `forward` moves a score to where it would be if its place were like the average one: it keeps
    how many spreads the score is above its place's mean. Before `learn` it changes nothing.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        """`shape` is (h, w)."""
        super().__init__()
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("spread", torch.ones(*shape))

    def forward(self, scores: Tensor) -> Tensor:
        """Scores (h, w) of one image, on the same grid or another -> (h, w)."""
        factor, shift = self.on(scores.shape)
        return scores * factor + shift

    def on(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Factor and shift (h, w) of each place; those of another grid are interpolated."""
        mean, spread = (_resized(of, shape) for of in (self.mean, self.spread))
        factor = self.spread.square().mean().sqrt() / spread
        return factor, self.mean.mean() - mean * factor

    @torch.no_grad()
    def learn(self, images: Sequence[Tensor], group: Group) -> None:
        """Set mean and spread from the scores (h, w) of this rank's good images. Collective.

        Few images tell little about a single place, so its values are drawn to those of its mirror
        images along both axes, and these to those of all places. A rank may have no image.
        """
        count = int(group.all_reduce(torch.tensor([len(images)])))
        none = torch.empty(0, *self.mean.shape, dtype=torch.float64)
        scores = torch.cat([none, *(image[None].double().cpu() for image in images)])
        mean = _drawn(group.all_reduce(scores.sum(dim=0)) / count, count)
        squares = group.all_reduce((scores - mean).square().sum(dim=0)) / count
        spread = _drawn(squares, count).sqrt()
        # Scores that never vary would make any other one infinite.
        floor = max(1e-6, 1e-3 * float(mean.abs().mean()))
        self.mean.copy_(mean)
        self.spread.copy_(spread.clamp(min=floor))


def _drawn(values: Tensor, count: int) -> Tensor:
    """Means (h, w) over `count` images, drawn to those of mirrored places and of all places."""
    mirrored = torch.stack([values.flip(axes) for axes in ((), (0,), (1,), (0, 1))]).mean(dim=0)
    mirrored = (4 * count * mirrored + _PRIOR * values.mean()) / (4 * count + _PRIOR)
    return (count * values + _PRIOR * mirrored) / (count + _PRIOR)


def _resized(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Values (h, w) on another grid whose outermost places are at the same border."""
    if tuple(values.shape) == tuple(shape):
        return values
    return F.interpolate(values[None, None], tuple(shape), mode="bilinear", align_corners=True)[
        0, 0
    ]
