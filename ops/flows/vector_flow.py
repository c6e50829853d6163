"""Normalizing flows on vectors: invertible networks with a known Jacobian determinant, by FrEIA."""

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

#: FrEIA draws from the global generators of torch and NumPy, so one network is built at a time.
_GENERATORS = threading.Lock()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch and NumPy; restore their states at the end.

    A network built inside has weights and permutations that depend on `seed` alone.
    """
    with _GENERATORS, torch.random.fork_rng(devices=[]):
        numpy_state: Any = np.random.get_state()  # noqa: NPY002
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002


def fixed_value_count(shapes: Sequence[LayerShape], blocks: int) -> int:
    """How many numbers the fixed permutations or rotations of FrEIA's one-sided couplings take.

    There is one flow per shape in `shapes`; each coupling stores a matrix (C, C) and its inverse.
    """
    return sum(2 * blocks * channels**2 for channels, _, _ in shapes)


def soft_clamp(u: Tensor) -> Tensor:
    """0.636 * atan(u / 3): times clamp = 3, as FrEIA does, this is DifferNet's log-scale.

    FrEIA's own "ATAN" uses atan(u), which is three times as steep at zero.
    """
    return 0.636 * torch.atan(u / 3)


class VectorFlow(nn.Module):
    """A flow on vectors: blocks of a fixed permutation and a two-sided affine coupling.

    DifferNet (Rudolph et al., WACV 2021, section 3.2). Vectors are first standardised by the
    buffers `mean` and `std` (width,), which are 0 and 1 until they are set. The permutation of a
    block is seeded with the block's number; weights are drawn from `seed`.
    """

    def __init__(self, width: int, blocks: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.width = width
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        # Imported here because it takes three seconds and most detectors have no flow.
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
    def parameter_count(width: int, blocks: int, hidden: int) -> int:
        """The number of weights of such a flow."""

        def subnet(inputs: int, outputs: int) -> int:
            inner = 2 * (hidden + 1) * hidden
            return (inputs + 1) * hidden + inner + (hidden + 1) * outputs

        half = round(width / 2)
        rest = width - half
        return blocks * (subnet(half, 2 * rest) + subnet(rest, 2 * half))

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, width) -> latents (n, width), standard normal for good images, and
        log |det J| (n,).
        """
        latent, volume = self._flow((vectors - self.mean) / self.std)
        return latent, volume - self.std.log().sum()

    def inverse(self, latent: Tensor) -> Tensor:
        """Latents (n, width) -> vectors (n, width), undoing `forward`."""
        vectors, _ = self._flow(latent, rev=True)
        return torch.as_tensor(vectors * self.std + self.mean)


class NegativeLogLikelihood(nn.Module):
    """The training loss of a flow: `forward` returns -log p of each vector, per dimension.

    The constant of the normal distribution is left out.
    """

    def __init__(self, flow: VectorFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, width) -> (n,): DifferNet's equation 4, divided by the width."""
        latent, volume = self.flow(vectors)
        return torch.as_tensor((latent.square().sum(dim=1) / 2 - volume) / vectors.shape[1])
