import itertools
from dataclasses import replace

import pytest
import torch

from ops.errors import SettingError, UserError
from ops.features import precision
from ops.features.backbone import Backbone, BackboneSettings
from tests.ops.conftest import TINY

RESNET = BackboneSettings("resnet18", "layer1,layer2", "random", 0)


@pytest.fixture
def images():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_a_lower_precision_gives_rounded_features_in_float32(images, low):
    exact = Backbone(RESNET)
    rounded = Backbone(replace(RESNET, precision=low, emulate=True))
    for one, other in zip(exact(images), rounded(images), strict=True):
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        assert (one - other).norm() < 0.02 * one.norm()
    assert rounded.fingerprint() == exact.fingerprint()
    assert {t.dtype for t in rounded.trainable_copy().parameters()} == {torch.float32}


def test_batch_norms_keep_their_statistics_in_float32():
    lowered = Backbone(replace(RESNET, precision="bfloat16", emulate=True))._passes
    kept = Backbone(RESNET)._network.state_dict()
    for name, tensor in lowered.state_dict().items():
        is_norm = ".bn" in name or name.startswith("bn") or ".downsample.1" in name
        assert tensor.dtype == (kept[name].dtype if is_norm else torch.bfloat16), name
        assert torch.equal(tensor, kept[name]) or not is_norm


def test_an_image_has_the_same_features_in_every_slot_of_a_block(images):
    backbone = Backbone(replace(RESNET, precision="bfloat16", emulate=True))
    assert backbone.block == 8
    alone = backbone(images[:1])
    for slot in range(8):
        batch = torch.zeros(8, 3, 32, 32)
        batch[slot] = images[0]
        for one, other in zip(alone, backbone(batch), strict=True):
            assert torch.equal(one[0], other[slot])


@pytest.mark.parametrize("name", ["tf32", "bfloat16"])
def test_a_device_that_lacks_the_precision_is_refused_unless_it_may_emulate(
    images, name, monkeypatch
):
    monkeypatch.setattr("ops.features.backbone.missing_on", lambda *_: "this CPU")
    backbone = Backbone(replace(TINY, precision=name))
    with pytest.raises(UserError, match=f"{name}, which this CPU does not have.*emulate true"):
        backbone(images)
    assert Backbone(replace(TINY, precision=name).emulated)(images)[0].dtype == torch.float32


def test_what_a_device_lacks(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert precision.missing_on(cpu, "float32") == precision.missing_on(gpu, "float32") == ""
    assert precision.missing_on(cpu, "tf32") == "this CPU"
    assert precision.missing_on(gpu, "float16") == ""
    assert precision.missing_on(gpu, "tf32") == "this GPU of compute capability 7.5"


def test_tf32_is_on_in_the_networks_passes_alone():
    precision.use_exact_arithmetic()
    gpu, matmul = torch.device("cuda:0"), torch.backends.cuda.matmul
    states = []
    for name, device in itertools.product(("float32", "tf32"), (torch.device("cpu"), gpu)):
        with precision.arithmetic(name, device):
            states.append((torch.backends.cudnn.conv.fp32_precision, matmul.fp32_precision))
    assert states == [("ieee", "ieee")] * 3 + [("tf32", "tf32")]
    assert torch.backends.cudnn.conv.fp32_precision == matmul.fp32_precision == "ieee"
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_unknown_precisions_and_negative_blocks_are_refused():
    with pytest.raises(SettingError, match="unknown precision 'fp16'; known: float32, tf32"):
        BackboneSettings(precision="fp16")
    with pytest.raises(SettingError, match="block -1 must be 0 or a number of images"):
        BackboneSettings(block=-1)


@pytest.mark.parametrize("mean", ["0.5", "0.5,0.5", "a,b,c", "0.1,0.2,nan", "0.1,0.2,0.3,0.4"])
def test_means_that_are_not_three_numbers_are_refused(mean):
    with pytest.raises(SettingError, match=f"mean '{mean}' must be three comma-separated numbers"):
        BackboneSettings(mean=mean)


def test_deviations_must_be_above_zero():
    with pytest.raises(SettingError, match=r"std '0.1,0,0.1' must hold numbers above 0"):
        BackboneSettings(std="0.1,0,0.1")


def test_torchvisions_configuration_is_filled_in():
    filled = BackboneSettings("resnet18").configured()
    assert filled.weights == "IMAGENET1K_V1"
    assert (filled.mean, filled.std) == ("0.485,0.456,0.406", "0.229,0.224,0.225")
    assert filled.normalisation == BackboneSettings().normalisation
    assert (filled.configuration.library, filled.configuration.size) == ("torchvision", 224)


def test_a_block_of_the_settings_holds_on_a_cpu(images):
    backbone = Backbone(replace(TINY, block=2))
    shapes = []
    backbone._network.register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0])))
    features = backbone(images)
    assert shapes == [2, 2, 2]
    assert [len(layer) for layer in features] == [5, 5]
