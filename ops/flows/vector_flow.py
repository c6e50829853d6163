"""Normalizing flows on vectors: invertible networks with a known volume change, by FrEIA."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ops.features.backbone import LayerShape

#: FrEIA draws from the global generators, NumPy's too: one network at a time.
_GENERATORS = threading.Lock()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Build a network whose weights and permutations follow from a seed.

    Global generators are then as they were.
    """
    with _GENERATORS, torch.random.fork_rng(devices=[]):
        kept: Any = np.random.get_state()  # noqa: NPY002
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(kept)  # noqa: NPY002


def fixed_of(shapes: Sequence[LayerShape], blocks: int) -> int:
    """Numbers of the permutations or rotations of FrEIA's one-sided couplings, a flow a layer.

    Each is a matrix, and so is its inverse.
    """
    return sum(2 * blocks * channels**2 for channels, _, _ in shapes)


def soft_clamp(u: Tensor) -> Tensor:
    """What FrEIA multiplies by clamp = 3 to get DifferNet's log-scale 3 * 0.636 * atan(u / 3).

    FrEIA's own "ATAN" has atan(u), which is three times as steep at zero.
    """
    return 0.636 * torch.atan(u / 3)


class VectorFlow(nn.Module):
    """A flow on vectors: blocks of a fixed permutation and a two-sided affine coupling.

    Vectors are shifted by `mean` and divided by `std` (width,) first, which change nothing unset.

    DifferNet (Rudolph et al., WACV 2021, section 3.2), whose permutations are seeded with the
    number of their block. Weights are drawn from `seed`; global generators stay untouched.
    """

    def __init__(self, width: int, blocks: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.width = width
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        # Imported here: it takes three seconds, and most detectors have no flow.
        from FrEIA.framework import SequenceINN  # noqa: PLC0415
        from FrEIA.modules import GLOWCouplingBlock, PermuteRandom  # noqa: PLC0415

        def subnet(inputs: int, outputs: int) -> nn.Module:
            sizes = [inputs, hidden, hidden, hidden]
            layers: list[nn.Module] = []
            for before, after in itertools.pairwise(sizes):
                layers += [nn.Linear(before, after), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(hidden, outputs))

        with seeded(seed):
            self._flow = SequenceINN(width)
            for block in range(blocks):
                self._flow.append(PermuteRandom, seed=block)
                self._flow.append(
                    GLOWCouplingBlock,
                    subnet_constructor=subnet,
                    clamp=3.0,
                    clamp_activation=soft_clamp,
                )

    @staticmethod
    def parameters_of(width: int, blocks: int, hidden: int) -> int:
        """How many weights such a flow has."""

        def subnet(inputs: int, outputs: int) -> int:
            inner = 2 * (hidden + 1) * hidden
            return (inputs + 1) * hidden + inner + (hidden + 1) * outputs

        half = round(width / 2)
        rest = width - half
        return blocks * (subnet(half, 2 * rest) + subnet(rest, 2 * half))

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(n, width) -> what a good vector's normal distribution should hold (n, width), and the
        log of the volume change (n,).
        """
        latent, volume = self._flow((vectors - self.mean) / self.std)
        return latent, volume - self.std.log().sum()

    def inverse(self, latent: Tensor) -> Tensor:
        """(n, width) -> (n, width), undoing `forward`."""
        vectors, _ = self._flow(latent, rev=True)
        return torch.as_tensor(vectors * self.std + self.mean)


class NegativeLogLikelihood(nn.Module):
    """A flow's training loss: forward gives -log p of each vector (n,), per dimension.

    The constant of the normal distribution is left out.
    """

    def __init__(self, flow: VectorFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, width) -> (n,): DifferNet's equation 4, divided by the width."""
        latent, volume = self.flow(vectors)
        return torch.as_tensor((latent.square().sum(dim=1) / 2 - volume) / vectors.shape[1])
