"""Windows hidden in turn against a full pass for each hidden window."""

from __future__ import annotations

import pytest
import torch

from ops.detectors.glance.masked_windows import masked_window_means
from ops.detectors.glance.partial_convolution import MaskedFeatures, PartialNetwork
from tests.ops.detectors.glance.test_partial_convolution import hiding, networks

#: In pixels, at every edge and in every phase of the network's strides.
CORNERS = [(0, 0), (0, 25), (48, 48), (48, 7), (3, 48), (16, 16), (17, 22), (30, 13), (23, 24)]


@pytest.mark.parametrize("patch", [16, 11])
@pytest.mark.parametrize("which", [0, 1], ids=["squeezenet", "residual"])
def test_hidden_windows_equal_a_full_pass_for_each_window(backbone, which, patch):
    network = networks(backbone)[which].double()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 64, 64, generator=generator, dtype=torch.float64)
    unmasked = PartialNetwork(network)
    with torch.inference_mode():
        unmasked.run(MaskedFeatures(image, torch.ones_like(image[:, :1])))
        top, left = torch.tensor(CORNERS).T
        means = masked_window_means(network, unmasked, top, left, patch)
        for number, corner in enumerate(CORNERS):
            mask = hiding(64, *corner, patch).double()
            plain = PartialNetwork(network).run(MaskedFeatures.of(image, mask))
            for layer, ours in zip(plain.values(), means, strict=True):
                torch.testing.assert_close(ours[number], layer.mean()[0], rtol=0, atol=1e-11)
                assert not torch.allclose(ours[number], ours[number - 1], atol=1e-4)
