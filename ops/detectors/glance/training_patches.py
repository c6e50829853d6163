"""Training examples of Glance, cut from good images: patches, and images with a hidden patch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ops.augment.stains import add_stains
from ops.detectors.uint16_images import from_uint16
from ops.distributed import Group

#: A random generator that follows from a key.
GeneratorOf = Callable[..., torch.Generator]
#: Patches of good images that stains take colours and textures from.
_STAIN_SOURCES = 64


def random_patch(image: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, int, int]:
    """A random patch (3, size, size) of an image (3, H, W), its top and its left."""
    top, left = (
        int(torch.randint(side - size + 1, (), generator=generator)) for side in image.shape[1:]
    )
    return image[:, top : top + size, left : left + size], top, left


def hidden_patch_example(
    image: Tensor, size: int, stain_sources: Sequence[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An image, a mask (1, H, W) that hides a random patch (0), that patch clean, and stained."""
    clean, top, left = random_patch(image, size, generator)
    mask = torch.ones_like(image[:1])
    mask[:, top : top + size, left : left + size] = 0
    return image, mask, clean, add_stains(clean, stain_sources, generator)


def stack_images(images: Iterable[Tensor], channels: int, side: int) -> Tensor:
    """Images (channels, H, W) as one batch, channels last; (0, channels, side, side) if empty."""
    batch = list(images)
    if not batch:
        return torch.zeros(0, channels, side, side)
    return torch.stack(batch).contiguous(memory_format=torch.channels_last)


def gather_stain_sources(
    samples: Mapping[int, Tensor], size: int, generator_of: GeneratorOf, group: Group
) -> dict[int, Tensor]:
    """Collective: one patch (3, size, size) each of some good images, by row; equal on all ranks.

    `samples` are this rank's images in 16 bits.
    """
    rows = torch.tensor(sorted(samples), dtype=torch.int64)
    everyone = torch.cat(group.all_gather(rows)).sort().values
    order = torch.randperm(len(everyone), generator=generator_of("snippets"))
    chosen = everyone[order[:_STAIN_SOURCES]]
    mine = [row for row in chosen.tolist() if row in samples]
    patches = [
        random_patch(from_uint16(samples[row]), size, generator_of("snippet", row))[0]
        for row in mine
    ]
    rows = torch.cat(group.all_gather(torch.tensor(mine, dtype=torch.int64)))
    sources = torch.cat(group.all_gather(stack_images(patches, 3, size).contiguous()))
    return dict(sorted(zip(rows.tolist(), sources, strict=True)))


def mean_and_std(vectors: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Collective: mean and standard deviation (d,) of all ranks' vectors (n, d).

    Small standard deviations are raised to a tenth of their mean, so that a division by them does
    not amplify dimensions that hardly vary.
    """
    count = group.all_reduce(torch.tensor([len(vectors)]))
    mean = group.all_reduce(vectors.double().sum(dim=0)) / count
    variance = group.all_reduce((vectors.double() - mean).square().sum(dim=0)) / count
    std = variance.sqrt()
    return mean, std.clamp(min=max(0.1 * float(std.mean()), 1e-12))
