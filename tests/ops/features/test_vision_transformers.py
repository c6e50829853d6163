import copy
from dataclasses import replace

import pytest
import torch
from torchvision.models import vision_transformer

from ops.errors import SettingError, UserError
from ops.features import timm_networks
from ops.features.backbone import Backbone, BackboneSettings
from ops.features.torchvision_networks import Torchvision
from ops.features.weights import load_weights

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
DINO2 = BackboneSettings("timm/vit_small_patch14_dinov2", "blocks.1,blocks.2,norm", "random")
REGISTERS = replace(DINO2, name="timm/vit_small_patch14_reg4_dinov2", layers="blocks.2")
DINO3 = BackboneSettings("timm/vit_small_patch16_dinov3", "blocks.0,blocks.2", "random")
VIT = "encoder.layers.encoder_layer_"
#: Networks of the same kinds that are made in milliseconds.
NARROW = {"depth": 4, "embed_dim": 48, "num_heads": 3}


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="the optional library timm is not installed")


@pytest.fixture
def narrow(timm, monkeypatch):
    """timm, whose transformers are narrow."""
    options = {"dynamic_img_size": True, **NARROW}
    monkeypatch.setattr(timm_networks, "_options", lambda _: options)
    return timm


def drawn(height, width, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def moved(state):
    """Weights away from those of the start, where scales of layers hide what blocks do."""
    generator = torch.Generator().manual_seed(1)
    return {k: t + 0.05 * torch.randn(t.shape, generator=generator) for k, t in state.items()}


def check_against(network, settings, sides):
    """Compare a backbone with timm's whole network of the same kind, given equal weights."""
    network.load_state_dict(moved(network.state_dict()))
    backbone, wanted = Backbone(settings), network.eval().state_dict()
    own = backbone._network.network
    own.load_state_dict({name: wanted[name] for name in own.state_dict()})
    patch = network.patch_embed.patch_size[0]
    images = drawn(sides[0] * patch, sides[1] * patch, 1)
    names = settings.layers.split(",")
    last = len(network.blocks) - 1
    for name, found in zip(names, backbone(images), strict=True):
        block = last if name == "norm" else int(name[7:])
        with torch.no_grad():  # what get_intermediate_layers calls, where a network has it
            (expected,) = network.forward_intermediates(
                (images - MEAN) / STD, [block], norm=name == "norm", intermediates_only=True
            )
        assert found.shape == (1, network.embed_dim, *sides)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [DINO2, REGISTERS, DINO3], ids=lambda one: one.name[5:])
@pytest.mark.parametrize("sides", [(5, 3), (37, 37)])
def test_maps_are_timms_intermediate_layers_without_class_and_registers(narrow, settings, sides):
    name = settings.name.removeprefix("timm/")
    check_against(narrow.create_model(name, dynamic_img_size=True, **NARROW), settings, sides)


def test_a_random_dinov2_gives_what_its_own_get_intermediate_layers_gives(timm):
    settings = replace(DINO2, layers="blocks.1,blocks.4")
    network = timm.create_model("vit_small_patch14_dinov2", dynamic_img_size=True).eval()
    network.load_state_dict(load_weights("random", settings.name, 0))
    images = drawn(56, 70, 1)
    with torch.no_grad():
        given = network.get_intermediate_layers((images - MEAN) / STD, n=[1, 4], reshape=True)
    for found, expected in zip(Backbone(settings)(images), given, strict=True):
        assert found.shape == (1, 384, 4, 5)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_transformer_is_cut_behind_its_last_block(narrow):
    names = Backbone(DINO3).state()
    assert max(int(name.split(".")[2]) for name in names if ".blocks." in name) == 2
    assert not [name for name in names if ".norm." in name or "head" in name]


def test_maps_of_transformers_do_not_depend_on_the_batch(narrow):
    backbone, images = Backbone(replace(DINO3, layers="blocks.1")), drawn(48, 48, 3)
    alone = torch.cat([backbone(image)[0] for image in images.split(1)])
    assert torch.equal(backbone(images)[0], alone)
    blocks = Backbone(replace(backbone.settings, block=4), backbone.state())
    assert torch.equal(blocks(images)[0][:1], blocks(images[:1])[0])


def test_a_planted_blob_stands_out_of_the_map_where_it_lies(narrow):
    backbone = Backbone(replace(REGISTERS, layers="blocks.2"))
    good = torch.full((1, 3, 112, 112), 0.4)
    bad = good.clone()
    bad[..., 28:42, 70:84] = 0.9
    distance = (backbone(good)[0] - backbone(bad)[0]).norm(dim=1)[0]
    assert divmod(int(distance.argmax()), 8) == (2, 5)


@pytest.mark.parametrize("side", [100, 6])
def test_an_input_that_patches_do_not_divide_is_refused_with_near_ones(narrow, side):
    near = "98 or 112" if side == 100 else "14"
    with pytest.raises(SettingError, match=f"of {side} pixels is no multiple.*--input.size {near}"):
        Backbone(REGISTERS)(drawn(side, side))


def test_a_network_of_one_size_says_so(timm, monkeypatch):
    monkeypatch.setattr(timm_networks, "_options", lambda _: NARROW | {"depth": 1})
    backbone = Backbone(BackboneSettings("timm/cait_xxs24_224", "blocks.0", "random"))
    assert backbone(drawn(224, 224, 1))[0].shape == (1, 48, 14, 14)
    with pytest.raises(SettingError, match=r"224 x 224 pixels only, not 64 x 64"):
        backbone(drawn(64, 64))


def test_unknown_blocks_are_refused_with_the_known(narrow):
    with pytest.raises(SettingError, match=r"no layers blocks.12; known: blocks.0, .*3, norm"):
        Backbone(replace(DINO2, layers="blocks.12"))


def test_positions_and_rotations_keep_their_precision_in_bfloat16(narrow):
    for settings in (replace(DINO2, layers="blocks.3"), replace(DINO3, layers="blocks.3")):
        (exact,) = Backbone(settings)(drawn(112, 112, 1))
        (low,) = Backbone(replace(settings, precision="bfloat16", emulate=True))(drawn(112, 112, 1))
        assert 0 < (exact - low).norm() < 0.02 * exact.norm()


def test_the_licence_of_dinov3_must_be_named(timm):
    with pytest.raises(SettingError, match=r"under the DINOv3 License.*--backbone.licence"):
        replace(DINO3, weights="").configured()
    assert replace(DINO3, weights="", licence="LICENCE.md").configured().weights == "lvd1689m"
    with pytest.raises(SettingError, match="under the DINOv3"):
        replace(DINO3, weights="own.safetensors").configured()
    assert DINO3.configured().weights == "random"
    assert not replace(DINO2, weights="").configuration.binds_copies


def test_weights_as_their_authors_name_them_are_converted(narrow, tmp_path):
    """DINOv2's own files have a mask token, and one tensor more where there are registers."""
    state = load_weights("random", REGISTERS.name, 0)
    theirs = dict(state) | {"mask_token": torch.zeros(1, 48)}
    theirs["register_tokens"] = theirs.pop("reg_token")
    first = torch.zeros(1, 1, 48)
    theirs["pos_embed"] = torch.cat([first, theirs["pos_embed"]], dim=1)
    torch.save(theirs, tmp_path / "theirs.pth")
    converted = Backbone(replace(REGISTERS, weights=str(tmp_path / "theirs.pth")))
    assert converted.fingerprint() == Backbone(REGISTERS).fingerprint()


@pytest.fixture
def network():
    torch.manual_seed(0)
    size = {"num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 48}
    return vision_transformer.VisionTransformer(96, 32, **size).eval()


@pytest.fixture
def of_torchvision(network, monkeypatch):
    """Makes a backbone of some layers of a small transformer of torchvision."""
    monkeypatch.setattr(Torchvision, "new", lambda *_: copy.deepcopy(network))
    return lambda layers: Backbone(BackboneSettings("vit_b_32", layers, "random"))


def test_maps_are_those_of_torchvisions_encoder(network, of_torchvision):
    kept = {}
    for name in (f"{VIT}0", "encoder.ln"):
        hook = lambda _, __, out, name=name: kept.update({name: out})  # noqa: E731
        network.get_submodule(name).register_forward_hook(hook)
    images = drawn(96, 96, 1)
    with torch.no_grad():
        network((images - MEAN) / STD)
    found = of_torchvision(f"{VIT}0,encoder.ln")(images)
    for one, tokens in zip(found, kept.values(), strict=True):
        expected = tokens[:, 1:].transpose(1, 2).reshape(1, 32, 3, 3)
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


def test_positions_are_interpolated_as_torchvision_does(network, of_torchvision):
    vit = of_torchvision(f"{VIT}0,encoder.ln")
    state = {"encoder.pos_embedding": network.encoder.pos_embedding.detach()}
    expected = vision_transformer.interpolate_embeddings(160, 32, state)["encoder.pos_embedding"]
    assert torch.equal(vit._network._positions((5, 5)), expected)
    assert [tuple(layer.shape) for layer in vit(drawn(64, 96, 1))] == [(1, 32, 2, 3)] * 2
    with pytest.raises(SettingError, match="of 100 pixels is no multiple of 32"):
        vit(drawn(96, 100))


def test_a_transformer_of_torchvision_is_cut_and_restored(of_torchvision):
    backbone = of_torchvision(f"{VIT}1")
    names = {name.split(".")[3] for name in backbone.state() if ".layers." in name}
    assert names == {"encoder_layer_0", "encoder_layer_1"}
    again = Backbone(backbone.settings, backbone.state())
    assert torch.equal(again(drawn(64, 64, 1))[0], backbone(drawn(64, 64, 1))[0])


def test_a_transformer_is_no_network_for_hidden_pixels(of_torchvision):
    with pytest.raises(UserError, match="is a vision transformer, which cannot be trained"):
        of_torchvision(f"{VIT}0").trainable_copy()


def test_the_projection_of_patches_is_still_a_layer(of_torchvision):
    assert of_torchvision("conv_proj")(drawn(96, 96, 1))[0].shape == (1, 32, 3, 3)
