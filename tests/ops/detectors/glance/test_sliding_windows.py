"""Windows hidden in turn against whole pictures that hide them."""

from __future__ import annotations

import pytest
import torch

from ops.detectors.glance.partial_convolution import Partial, Seen
from ops.detectors.glance.sliding_windows import embedded
from tests.ops.detectors.glance.test_partial_convolution import hiding, networks

#: In pixels, at every edge and in every phase of the network's strides.
CORNERS = [(0, 0), (0, 25), (48, 48), (48, 7), (3, 48), (16, 16), (17, 22), (30, 13), (23, 24)]


@pytest.mark.parametrize("patch", [16, 11])
@pytest.mark.parametrize("which", [0, 1], ids=["squeezenet", "residual"])
def test_what_a_window_changes_is_all_that_changes(backbone, which, patch):
    network = networks(backbone)[which].double()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 64, 64, generator=generator, dtype=torch.float64)
    whole = Partial(network)
    with torch.inference_mode():
        whole.run(Seen(image, torch.ones_like(image[:, :1])))
        top, left = torch.tensor(CORNERS).T
        found = embedded(network, whole, top, left, patch)
        for number, corner in enumerate(CORNERS):
            mask = hiding(64, *corner, patch).double()
            plain = Partial(network).run(Seen.of(image, mask))
            for layer, ours in zip(plain.values(), found, strict=True):
                torch.testing.assert_close(ours[number], layer.mean()[0], rtol=0, atol=1e-11)
                assert not torch.allclose(ours[number], ours[number - 1], atol=1e-4)
