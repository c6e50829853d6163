import torch

from ops.features.blocks import block_of, in_blocks


def test_every_pass_has_a_full_block_and_padding_is_cut_off():
    seen = []

    def double(part):
        seen.append([tuple(rows.shape) for rows in part])
        return [part[0] * 2, part[1].sum(dim=1)]

    images, maps = torch.arange(14.0).view(7, 2), torch.ones(7, 3)
    doubled, sums = in_blocks(double, [images, maps], 3)
    assert torch.equal(doubled, images * 2)
    assert torch.equal(sums, torch.full((7,), 3.0))
    assert seen == [[(3, 2), (3, 3)]] * 3


def test_no_image_gives_no_result_of_the_right_shape():
    (empty,) = in_blocks(lambda part: [part[0][:, :1]], [torch.empty(0, 4)], 8)
    assert empty.shape == (0, 1)


def test_a_cpu_takes_single_images_and_a_gpu_blocks():
    assert block_of(torch.device("cpu")) == 1
    assert block_of(torch.device("cuda:0")) == 32
