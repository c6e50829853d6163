"""What is drawn from good pictures to learn on: patches, and pictures that hide one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ops.augment.stains import stained
from ops.detectors.trained import from_sixteen
from ops.distributed import Group

#: Randomness by a key.
Draw = Callable[..., torch.Generator]
#: Snippets that stains are made of.
_SNIPPETS = 64


def patch_of(image: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, int, int]:
    """A patch (3, size, size) anywhere in an image (3, H, W), its top and its left."""
    top, left = (
        int(torch.randint(side - size + 1, (), generator=generator)) for side in image.shape[1:]
    )
    return image[:, top : top + size, left : left + size], top, left


def scene_of(
    image: Tensor, size: int, snippets: Sequence[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An image, its mask (1, H, W), which is 0 in a patch, that patch clean, and stained."""
    clean, top, left = patch_of(image, size, generator)
    mask = torch.ones_like(image[:1])
    mask[:, top : top + size, left : left + size] = 0
    return image, mask, clean, stained(clean, snippets, generator)


def stacked(parts: Iterable[Tensor], channels: int, side: int) -> Tensor:
    """Pictures (channels, H, W) as one batch; of none too, which then have that side."""
    batch = list(parts)
    if not batch:
        return torch.zeros(0, channels, side, side)
    # The order of memory that convolutions like.
    return torch.stack(batch).contiguous(memory_format=torch.channels_last)


def snippets_of(
    samples: Mapping[int, Tensor], size: int, draw: Draw, group: Group
) -> dict[int, Tensor]:
    """Collective: a patch each of some good images in 16 bits, by their numbers; alike on all."""
    rows = torch.tensor(sorted(samples), dtype=torch.int64)
    everyone = torch.cat(group.all_gather(rows)).sort().values
    chosen = everyone[torch.randperm(len(everyone), generator=draw("snippets"))[:_SNIPPETS]]
    mine = [row for row in chosen.tolist() if row in samples]
    found = [patch_of(from_sixteen(samples[row]), size, draw("snippet", row))[0] for row in mine]
    rows = torch.cat(group.all_gather(torch.tensor(mine, dtype=torch.int64)))
    snippets = torch.cat(group.all_gather(stacked(found, 3, size).contiguous()))
    return dict(sorted(zip(rows.tolist(), snippets, strict=True)))


def moments(vectors: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Collective: mean and standard deviation (d,) of all ranks' vectors (n, d).

    What hardly varies says little; it must not become large, nor infinite, if divided.
    """
    count = group.all_reduce(torch.tensor([len(vectors)]))
    mean = group.all_reduce(vectors.double().sum(dim=0)) / count
    spread = group.all_reduce((vectors.double() - mean).square().sum(dim=0)) / count
    spread = spread.sqrt()
    return mean, spread.clamp(min=max(0.1 * float(spread.mean()), 1e-12))
