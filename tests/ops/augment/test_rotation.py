import math

import pytest
import torch

from ops.augment.rotation import rotate_images, rotations

ANGLES = (0.0, 0.4, math.pi / 4, 1.9, math.pi, 5.5)


@pytest.mark.parametrize(("height", "width"), [(9, 9), (8, 13)])
def test_a_table_of_rotations_gives_the_same_views_and_gradients_as_sampling_a_grid(height, width):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, height, width, generator=generator)
    weights = torch.randn(len(ANGLES), 3, height, width, generator=generator)
    images = image.expand(len(ANGLES), -1, -1, -1).clone().requires_grad_()
    views = rotate_images(images, torch.tensor(ANGLES))
    (expected,) = torch.autograd.grad((views * weights).sum(), images)
    table = rotations(height, width, ANGLES, torch.device("cpu"))
    assert torch.equal(table.views(image), views)
    assert torch.equal(table.gradients(weights), expected)
    assert 1 < table.targets.shape[1] <= 4  # some pixel is shown more than once


def test_a_pixel_that_no_view_shows_has_no_gradient():
    table = rotations(9, 9, (math.pi / 4,), torch.device("cpu"))
    corner = table.gradients(torch.ones(1, 1, 9, 9))[0, 0, 0, 0]
    assert float(corner) == 0
    assert float(table.views(torch.ones(1, 9, 9))[0, 0, 0, 0]) == 0  # black, from outside
