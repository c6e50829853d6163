"""The loss of SSNF: good images become likely, synthetic defects that pass a gate unlikely."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ops.distributed import Group


class GatedLoss(NamedTuple):
    """Weights of a rank's losses, good images first, and how many synthetic images pass the gate.

    The loss of the step is the sum of weighted losses over all ranks; `pushed` counts all ranks.
    """

    weights: Tensor
    pushed: int


def gate(
    good: Tensor, synthetic: Tensor, changed: Tensor, max_nll: float, group: Group
) -> GatedLoss:
    """Weights (n + m,) of -log p of this rank's good (n,) and synthetic (m,) images. Collective.

    A synthetic image passes the gate if its -log p is below `max_nll` and below that of the least
    likely good image of the step, on any rank. Images that are not `changed` (m,) never pass (our
    choice). The loss is half the mean over good images minus half the mean over synthetic images
    that pass; if none passes, the mean over good images. It does not depend on how a step is split
    over ranks.
    """
    worst = good.max() if len(good) else torch.tensor(-torch.inf)
    worst = group.all_reduce(worst.reshape(1).double(), "max")[0]
    passed = changed & (synthetic.double() < min(float(worst), max_nll))
    counts = group.all_reduce(torch.tensor([len(good), int(passed.sum())]))
    images, pushed = counts.tolist()
    if not pushed:
        return GatedLoss(torch.cat([torch.full_like(good, 1 / images), passed.to(good)]), 0)
    of_good = torch.full_like(good, 0.5 / images)
    return GatedLoss(torch.cat([of_good, passed.to(good) * (-0.5 / pushed)]), pushed)
