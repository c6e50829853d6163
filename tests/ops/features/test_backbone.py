import pickle
from dataclasses import replace
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from ops.errors import UserError
from ops.features.backbone import Backbone, BackboneSettings
from ops.features.weights import fingerprint, load_weights
from ops.storage.storage_errors import Unavailable
from tests.ops.conftest import TINY


@pytest.fixture(scope="module")
def images():
    return torch.rand(7, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_each_layer_gives_a_feature_map_in_the_order_of_the_settings(backbone, images):
    early, late = backbone(images[:2])
    assert early.shape == (2, 128, 15, 15)
    assert late.shape == (2, 256, 7, 7)


def test_features_are_those_of_torchvision_on_normalised_images(backbone, images):
    network = torchvision.models.squeezenet1_1(weights=None)
    network.load_state_dict(load_weights("random", "squeezenet1_1", 0))
    normalise = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = network.features[:4].eval()(normalise(images[:1]))
    torch.testing.assert_close(backbone(images[:1])[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4], [7], [5, 2]])
def test_an_images_features_are_the_same_bits_in_any_batch(backbone, images, sizes):
    parts = [backbone(part) for part in images.split(sizes)]
    together = [torch.cat(maps) for maps in zip(*parts, strict=True)]
    assert equal(together, backbone(images))


def test_padding_a_block_changes_no_image(backbone, images):
    blocks = Backbone(replace(TINY, block=8), backbone.state())
    block = blocks(images[:3])
    assert [len(layer) for layer in block] == [3, 3]
    assert equal([layer[:2] for layer in block], blocks(images[:2]))


def test_train_of_a_wrapper_does_not_change_the_backbone():
    backbone = Backbone(BackboneSettings("shufflenet_v2_x0_5", "conv1", "random", 0))
    before = backbone.fingerprint()
    wrapper = nn.ModuleDict({"backbone": backbone}).train()
    wrapper["backbone"](torch.rand(2, 3, 32, 32))
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.fingerprint() == before


def test_an_unknown_layer_is_refused_with_the_known():
    with pytest.raises(UserError, match=r"no layer 'layer2'; known: .*features\.3"):
        Backbone(BackboneSettings("squeezenet1_1", "features.3,layer2", "random", 0))


def test_a_backbone_from_a_state_gives_equal_features(backbone, images):
    other = Backbone(TINY, backbone.state())
    assert equal(other(images), backbone(images))
    assert other.fingerprint() == backbone.fingerprint()


def test_its_state_ends_behind_the_last_layer(backbone):
    names = {name.split(".")[1] for name in backbone.state()}
    assert names == {"0", "3", "4", "6"}


def test_random_weights_follow_their_seed_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    zero, again, one = (load_weights("random", "squeezenet1_1", seed) for seed in (0, 0, 1))
    Backbone(TINY)
    assert torch.equal(torch.rand(3), expected)
    assert fingerprint(zero) == fingerprint(again) != fingerprint(one)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_file(backbone, images, tmp_path, suffix):
    file = str(tmp_path / f"weights{suffix}")
    state = load_weights("random", "squeezenet1_1", 0)
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    settings = BackboneSettings("squeezenet1_1", TINY.layers, file, seed=99)
    assert equal(Backbone(settings)(images), backbone(images))


class Bomb:
    went_off = False

    def __reduce__(self):
        return (setattr, (Bomb, "went_off", True))


def test_a_file_that_holds_more_than_tensors_is_refused_and_not_run(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(2), "more": Bomb()}, file)
    with pytest.raises(UserError, match=r"cannot be read as tensors \(UnpicklingError\)"):
        load_weights(str(file), "squeezenet1_1", 0)
    file.write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(UserError, match=r"cannot be read as tensors \(UnpicklingError\)"):
        load_weights(str(file), "squeezenet1_1", 0)
    assert not Bomb.went_off


def test_weights_of_another_network_are_refused(tmp_path):
    file = str(tmp_path / "weights.safetensors")
    save_file({"layer1.weight": torch.ones(2)}, file)
    with pytest.raises(RuntimeError, match="Missing key"):
        Backbone(BackboneSettings("squeezenet1_1", TINY.layers, file))


def test_unknown_weights_are_refused_with_the_known():
    with pytest.raises(FileNotFoundError, match="known: IMAGENET1K_V1, random"):
        load_weights("IMAGENET1K_V9", "squeezenet1_1", 0)


def test_weights_that_cannot_be_fetched_are_an_error_that_names_the_alternatives(monkeypatch):
    def cut_off(*_, **__):
        raise URLError("no such host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", cut_off)
    with pytest.raises(Unavailable, match=r"pytorch.org.*: no such host; --backbone.weights"):
        load_weights("IMAGENET1K_V1", "squeezenet1_1", 0)


def test_a_fingerprint_depends_on_names_types_shapes_and_values():
    tensor = torch.arange(4, dtype=torch.float32)
    states = [
        {"a": tensor},
        {"b": tensor},
        {"a": tensor.view(2, 2)},
        {"a": tensor.view(torch.int32)},
        {"a": tensor + 1},
        {"a": tensor, "b": tensor},
        {"a": torch.tensor(0.0)},
        {"a": torch.empty(0)},
    ]
    assert len({fingerprint(state) for state in states}) == len(states)
    assert fingerprint({"a": tensor, "b": tensor}) == fingerprint({"b": tensor, "a": tensor})
    assert fingerprint({"a": tensor[::2]}) == fingerprint({"a": tensor[::2].clone()})
