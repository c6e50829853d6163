import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from ops.errors import SettingError, UserError
from ops.features.backbone import Backbone, BackboneSettings
from ops.features.weights import fingerprint, load_weights
from ops.storage.storage_errors import NotFound, Unavailable
from tests.conftest import DATA

timm = pytest.importorskip("timm", reason="the optional library timm is not installed")
SMALL = BackboneSettings("timm/test_efficientnet", "blocks.1,blocks.3", "random")
LITE = BackboneSettings("timm/tf_efficientnet_lite0", "blocks.2,blocks.4", "random")
WEIGHTS = DATA / "weights" / "tf_efficientnet_lite0_imagenet.safetensors"


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small():
    return Backbone(SMALL)


def network_of(settings):
    network = timm.create_model(settings.name.removeprefix("timm/"))
    network.load_state_dict(load_weights(settings.weights, settings.name, settings.seed))
    return network.eval()


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_features_are_those_of_timm_on_pixels_normalised_by_its_configuration(images):
    network = network_of(LITE)
    found = Backbone(LITE)(images[:1])
    with torch.no_grad():
        x = network.bn1(network.conv_stem((images[:1] - 0.5) / 0.5))
        expected = []
        for stage in network.blocks[:5]:
            expected.append(x := stage(x))
    torch.testing.assert_close(found[0], expected[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected[4], rtol=1e-4, atol=1e-5)
    assert [tuple(layer.shape[1:]) for layer in found] == [(40, 8, 8), (112, 4, 4)]


def test_the_network_ends_behind_the_last_layer():
    state = Backbone(LITE).state()
    assert {name.split(".")[1] for name in state if name.startswith("blocks.")} == set("01234")
    assert {name.split(".")[0] for name in state} == {"conv_stem", "bn1", "blocks"}


def test_features_do_not_depend_on_the_batch(small, images):
    alone = [torch.cat(rows) for rows in zip(*map(small, images.split(1)), strict=True)]
    assert equal(small(images), alone)


def test_mean_and_deviation_can_be_those_of_other_weights(small, images):
    other = replace(SMALL, mean="0.5,0.25,0", std="0.5,1,2")
    scaled = images * torch.tensor([0.5, 1, 2]).view(3, 1, 1)
    scaled = scaled + torch.tensor([0.5, 0.25, 0]).view(3, 1, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in small.settings.normalisation)
    torch.testing.assert_close(Backbone(other)(scaled), small(images * std + mean))
    assert LITE.normalisation == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_the_configuration_is_timms():
    found = replace(LITE, weights="").configuration
    assert (found.library, found.version) == ("timm", timm.__version__)
    assert (found.mean, found.std, found.size) == ((0.5,) * 3, (0.5,) * 3, 224)
    assert (found.weights, found.licence, found.binds_copies) == ("in1k", "apache-2.0", False)
    for other in ("random", "weights.safetensors"):  # timm cannot know their licence
        found = replace(LITE, weights=other).configuration
        assert (found.weights, found.licence) == (other, "")
    tagged = [
        BackboneSettings("timm/resnet18.tv_in1k", "layer2", ""),
        BackboneSettings("timm/resnet18", "layer2", "tv_in1k"),
    ]
    assert [one.configured().weights for one in tagged] == ["tv_in1k", "tv_in1k"]
    assert tagged[0].configured().mean == "0.485,0.456,0.406"
    assert BackboneSettings("timm/resnet18").configured().weights == "a1_in1k"


def test_a_filled_in_configuration_stays_as_it_is_and_gives_the_same_features(small, images):
    filled = SMALL.configured()
    assert (filled.mean, filled.std) == ("0.485,0.456,0.406", "0.229,0.224,0.225")
    assert filled.configured() == filled
    assert equal(Backbone(filled, small.state())(images), small(images))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_file(small, images, tmp_path, suffix):
    file = str(tmp_path / f"weights{suffix}")
    state = load_weights("random", SMALL.name, 0)
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    assert equal(Backbone(replace(SMALL, weights=file, seed=9))(images), small(images))


def test_random_weights_follow_their_seed():
    zero, again, one = (load_weights("random", SMALL.name, seed) for seed in (0, 0, 1))
    assert fingerprint(zero) == fingerprint(again) != fingerprint(one)


def test_weights_of_another_network_are_refused_with_what_differs(tmp_path):
    file = str(tmp_path / "weights.safetensors")
    save_file({"layer1.weight": torch.ones(2)}, file)
    with pytest.raises(UserError, match=r"not those of timm/test_efficientnet: \d+ tensors are mi"):
        Backbone(replace(SMALL, weights=file))
    state = load_weights("random", SMALL.name, 0)
    save_file(state | {"conv_stem.weight": torch.ones(2)}, file)
    with pytest.raises(UserError, match=r"1 have another shape, such as 'conv_stem.weight'"):
        Backbone(replace(SMALL, weights=file))


def test_weights_of_timms_names_come_from_its_hub(small, images, monkeypatch):
    asked = []

    def hub(place, *_, **options):
        asked.append((place, options.get("weights_only")))
        return load_weights("random", SMALL.name, 0)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", hub)
    found = Backbone(BackboneSettings(SMALL.name, SMALL.layers))
    assert equal(found(images), small(images))
    assert asked == [("timm/test_efficientnet.r160_in1k", True)]


def test_weights_that_cannot_be_fetched_are_an_error_that_names_the_alternatives(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def cut_off(*_, **__):
        raise LocalEntryNotFoundError("no such host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", cut_off)
    with pytest.raises(Unavailable, match=r"r160_in1k of timm/test_eff.*EntryNotFound.*s3://"):
        Backbone(BackboneSettings(SMALL.name, SMALL.layers))


def test_unknown_weights_are_refused_with_the_known():
    with pytest.raises(NotFound, match=r"no weights name of timm's .*; known: r160_in1k, random"):
        load_weights("nonsense", SMALL.name, 0)
    with pytest.raises(SettingError, match=r"no weights 'old' of resnet18; known: a1_in1k, "):
        BackboneSettings("timm/resnet18.old").configured()


@pytest.mark.parametrize(
    "name", ["timm/hf-hub:someone/else", "timm/local-dir:/tmp", "timm/", "timm/../resnet18"]
)
def test_a_name_leads_to_no_other_repository_and_no_folder(name):
    with pytest.raises(SettingError, match="timm has no network"):
        Backbone(BackboneSettings(name, "blocks.1", "random"))


def test_an_unknown_network_is_refused_with_similar_ones():
    with pytest.raises(SettingError, match=r"no network 'efficientnet_lite'; similar: eff.*lite0"):
        BackboneSettings("timm/efficientnet_lite").configured()


def test_an_unknown_layer_is_refused_with_the_known():
    with pytest.raises(SettingError, match=r"no layer 'blocks.9'; known: conv_stem, bn1, "):
        Backbone(replace(SMALL, layers="blocks.1,blocks.9"))


def test_a_lower_precision_gives_rounded_features(small, images):
    rounded = Backbone(replace(SMALL, precision="bfloat16", emulate=True))(images)
    for one, other in zip(small(images), rounded, strict=True):
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        assert (one - other).norm() < 0.05 * one.norm()


def test_without_timm_its_networks_are_refused_and_others_work(monkeypatch, images):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingError, match=r"optional library timm.*pip install '\.\[timm\]'"):
        Backbone(SMALL)
    plain = BackboneSettings("squeezenet1_1", "features.3", "random").configured()
    assert Backbone(plain)(images)[0].shape == (3, 128, 15, 15)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the weights of EfficientNet-lite0 are not here")
def test_real_weights_give_the_features_of_timm(images):
    settings = replace(
        LITE, weights=str(WEIGHTS), mean="0.485,0.456,0.406", std="0.229,0.224,0.225"
    )
    network = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3))
    own = network.state_dict()
    state = load_weights(str(WEIGHTS), LITE.name, 0)
    named = {name: state[name.replace("blocks_", "blocks.")] for name in own if name in state}
    network.load_state_dict(own | named)
    pixels = torch.nn.functional.interpolate(images[:1], size=224)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in settings.normalisation)
    with torch.no_grad():
        expected = network.eval()((pixels - mean) / std)
    for one, other in zip(Backbone(settings)(pixels), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
