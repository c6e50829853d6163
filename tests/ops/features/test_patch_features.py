"""The identities behind locally averaged patches, in float64."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ops.features.patch_features import embed


def maps(*shapes: tuple[int, int], batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, channels, side, side, generator=generator, dtype=torch.float64)
        for channels, side in shapes
    ]


def pooled(values: list[float], bins: int) -> list[float]:
    """Adaptive average pooling by definition: bin i averages [i n // b, ceil((i + 1) n / b))."""
    n = len(values)
    edges = [(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)]
    return [sum(values[low:high]) / (high - low) for low, high in edges]


def neighbourhood(layer: Tensor, y: int, x: int) -> list[float]:
    """The 3 x 3 x C values around a cell of one image (C, h, w), channel-major, zeros outside."""
    padded = F.pad(layer, (1, 1, 1, 1))
    return padded[:, y : y + 3, x : x + 3].flatten().tolist()


def assert_close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


def test_nine_times_c_values_to_c_bins_are_the_mean_of_each_channel():
    (layer,) = maps((6, 5))
    unfolded = F.unfold(layer, 3, padding=1).transpose(1, 2)
    expected = F.adaptive_avg_pool1d(unfolded, 6).view(2, 5, 5, 6)
    assert_close(embed([layer], "pooled", 6), expected)
    assert_close(F.avg_pool2d(layer, 3, 1, 1).permute(0, 2, 3, 1), expected)


@pytest.mark.parametrize("dim", [4, 5, 8, 12])
@pytest.mark.parametrize("channels", [(4,), (4, 8), (6, 9, 4)])
def test_pooled_vectors_are_those_of_a_loop_over_cells(channels, dim):
    layers = maps(*((count, 5) for count in channels))
    result = embed(layers, "pooled", dim)
    assert result.shape == (2, 5, 5, dim)
    for image, y, x in ((0, 0, 0), (0, 2, 3), (1, 4, 4), (1, 1, 0)):
        each = [pooled(neighbourhood(layer[image], y, x), dim) for layer in layers]
        expected = torch.tensor(pooled([*chain(*each)], dim), dtype=torch.float64)
        assert_close(result[image, y, x], expected)


@pytest.mark.parametrize(
    "shapes",
    [
        [(512, 8), (1024, 4)],  # wide_resnet50_2
        [(384, 6), (512, 6)],  # squeezenet1_1
        [(384, 6), (384, 6), (512, 6)],
    ],
)
def test_pooled_vectors_of_real_widths_are_those_of_unfolded_neighbourhoods(shapes):
    layers = [layer.float() for layer in maps(*shapes)]
    size = layers[0].shape[-2:]
    each = []
    for layer in layers:
        unfolded = F.unfold(layer.double(), 3, padding=1).transpose(1, 2)
        part = F.adaptive_avg_pool1d(unfolded, 1024).transpose(1, 2)
        part = part.unflatten(2, layer.shape[-2:])
        each.append(F.interpolate(part, size=size, mode="bilinear"))
    flat = torch.cat(each, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    expected = F.adaptive_avg_pool1d(flat, 1024).view(2, *size, 1024)
    result = embed(layers, "pooled", 1024)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_first_half_of_a_pooled_vector_is_the_first_layers():
    first, second = maps((4, 5), (8, 5))
    changed = embed([first, second + 1], "pooled", 8) - embed([first, second], "pooled", 8)
    assert (changed[..., :4] == 0).all()
    assert (changed[..., 4:] != 0).all()


def test_averaging_neighbours_and_resizing_commute():
    fine, coarse = maps((2, 8), (4, 4))
    bigger = F.interpolate(F.avg_pool2d(coarse, 3, 1, 1), size=(8, 8), mode="bilinear")
    unfolded = F.unfold(coarse, 3, padding=1).view(2, 4 * 9, 4, 4)
    resized = F.interpolate(unfolded, size=(8, 8), mode="bilinear").view(2, 4, 9, 8, 8)
    assert_close(resized.mean(dim=2), bigger)
    assert_close(embed([fine, coarse], "concat", 0)[..., 2:], bigger.permute(0, 2, 3, 1))


def test_concatenated_vectors_hold_all_channels_in_order():
    first, second = maps((3, 6), (5, 6))
    result = embed([first, second], "concat", 0)
    assert result.shape == (2, 6, 6, 8)
    for image, y, x in ((0, 0, 0), (1, 3, 5)):
        values = neighbourhood(first[image], y, x) + neighbourhood(second[image], y, x)
        assert_close(
            result[image, y, x], torch.tensor(values, dtype=torch.float64).view(8, 9).mean(dim=1)
        )


@pytest.mark.parametrize("embedding", ["pooled", "concat"])
@pytest.mark.parametrize("dim", [1024, 96, 97])
def test_an_image_in_a_batch_has_the_bits_it_has_alone(embedding, dim):
    layers = [
        layer.float().contiguous(memory_format=torch.channels_last)
        for layer in maps((128, 14), (256, 7), batch=5)
    ]
    alone = [embed([layer[i : i + 1] for layer in layers], embedding, dim) for i in range(5)]
    assert torch.equal(embed(layers, embedding, dim), torch.cat(alone))
