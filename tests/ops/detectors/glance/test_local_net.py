"""Local-Net: a dense pass against one patch at a time, and compactness."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ops.detectors.glance.local_net import (
    Distillation,
    LocalBatch,
    LocalNet,
    compactness,
    initialise,
)
from ops.distributed import Group
from tests.ops.threads import together


def network(patch: int) -> LocalNet:
    local = LocalNet(patch, 4, 5)
    initialise(local, torch.Generator().manual_seed(0))
    return local.double()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_its_layers_for_64_pixels():
    local = LocalNet(64, 128, 128)
    convolutions = [*local.blocks, local.last, local.linear]
    channels = [(c.in_channels, c.out_channels) for c in convolutions]
    assert channels == [(3, 128), (128, 128), (128, 256), (256, 256), (256, 128)]
    assert [c.kernel_size[0] for c in convolutions] == [5, 5, 5, 4, 1]


@pytest.mark.parametrize("stride", [1, 2, 4, 6, 8, 16])
@pytest.mark.parametrize(("patch", "size"), [(16, 48), (23, 50), (32, 64), (64, 96)])
def test_a_dense_pass_equals_a_pass_for_each_patch(patch, size, stride):
    local, image = network(patch), noise(1, 3, size, size)
    with torch.inference_mode():
        dense = local.dense(image, stride)[0]
        assert dense.shape == (5, *[(size - patch) // stride + 1] * 2)
        for row, column in [(0, 0), (-1, -1), (0, -1), (dense.shape[1] // 2, 1 % dense.shape[2])]:
            y, x = row % dense.shape[1] * stride, column % dense.shape[2] * stride
            expected = local(image[:, :, y : y + patch, x : x + patch])[0]
            torch.testing.assert_close(dense[:, row, column], expected, rtol=0, atol=1e-12)


def test_standardised_descriptors_have_mean_zero_and_variance_one():
    local, patches = network(16), noise(50, 3, 16, 16)
    with torch.no_grad():
        before = local(patches)
        local.standardise(before.mean(dim=0), before.std(dim=0))
        expected = (before - before.mean(dim=0)) / before.std(dim=0)
        torch.testing.assert_close(local(patches), expected, rtol=0, atol=1e-10)


def test_compactness_is_the_mean_squared_correlation_between_dimensions():
    descriptors = noise(20, 5) * torch.arange(1, 6) + 3
    correlations = np.corrcoef(descriptors.numpy().T)[~np.eye(5, dtype=bool)]
    assert float(compactness(descriptors)) == pytest.approx((correlations**2).mean())


@pytest.mark.parametrize("counts", [[12], [5, 7], [12, 0]], ids=str)
def test_gradients_of_a_step_are_the_same_on_any_number_of_workers(counts):
    patches, teacher_features = noise(12, 3, 16, 16), noise(12, 6)

    def program(group: Group):
        module = Distillation(network(16), 5, 6, (1.0, 1.0))
        module.group = group
        initialise(module.decoder, torch.Generator().manual_seed(1))
        start = sum(counts[: group.rank])
        mine = slice(start, start + counts[group.rank])
        losses = module.double()(LocalBatch(patches[mine], teacher_features[mine])).sum() / 12
        losses.backward()
        gradient = group.all_reduce(module.local.last.weight.grad)
        return group.all_reduce(losses.detach()), gradient

    (loss, gradient), (expected, whole) = (
        together(len(counts), program)[-1],
        together(1, _alone)[0],
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-12)


def _alone(group: Group):
    """The loss as it is written, and its gradient."""
    local, decoder = network(16), torch.nn.Linear(5, 6)
    initialise(decoder, torch.Generator().manual_seed(1))
    descriptors = local(noise(12, 3, 16, 16))
    distance = (decoder.double()(descriptors) - noise(12, 6)).square().mean()
    loss = distance + compactness(descriptors)
    loss.backward()
    return loss.detach(), local.last.weight.grad
