"""Networks of timm (pytorch-image-models), an optional library: of convolutions, transformers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ops.errors import SettingError, UserError
from ops.features.configuration import DINOV3, Configuration
from ops.features.torchvision_networks import check_layers
from ops.features.vision_transformers import TimmTransformer, transformer_layers
from ops.storage.storage_errors import Unavailable

# timm is imported in functions: it is optional, and takes seconds.

#: Modules of timm whose networks take an input of any size, if they are told so when they are made.
_ANY_SIZE = {"beit", "deit", "eva", "vision_transformer"}


def _timm() -> Any:
    """The library. Raises SettingError if it is not installed."""
    try:
        import timm  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise SettingError(
            "backbones named timm/... need the optional library timm, which is not installed here; "
            "install it on every machine with pip install '.[timm]', or choose a network of "
            "torchvision"
        ) from None
    return timm


class Timm:
    """Networks that are named timm/NAME or timm/NAME.TAG, where TAG names pretrained weights."""

    name = "timm"

    def configuration(self, network: str, weights: str) -> Configuration:
        """What timm says of a network with weights of a tag, of the tag in its name, or its first.

        `weights` may be something else than a tag. Raises SettingError for an unknown network or
        tag in its name.
        """
        known = _configurations(network)
        architecture, _, tag = network.removeprefix("timm/").partition(".")
        if tag and tag not in known:
            raise SettingError(
                f"timm has no weights {tag!r} of {architecture}; known: {', '.join(known)}"
            )
        tag = weights if weights in known else tag or next(iter(known), "")
        found = known.get(tag) or _timm().models.PretrainedCfg()
        stated = found.license or ""
        from_timm, from_file = weights in {"", tag}, weights != "random"
        # timm cannot know of a file. But DINOv3's networks have weights of its licence only.
        known_licence = from_timm or (from_file and stated == DINOV3)
        return Configuration(
            self.name,
            str(_timm().__version__),
            mean=tuple(map(float, found.mean)),
            std=tuple(map(float, found.std)),
            size=int(found.input_size[-1]),
            weights=weights or tag,
            licence=stated if known_licence else "",
        )

    def new(self, network: str) -> nn.Module:
        """The whole network, with weights drawn from torch's generator.

        Raises SettingError for a name that is not timm's.
        """
        _configurations(network)
        made: nn.Module = _timm().create_model(_architecture(network), **_options(network))
        return made

    def known_weights(self, network: str) -> list[str]:
        """Tags of the pretrained weights of a network."""
        return list(_configurations(network))

    def pretrained(self, network: str, weights: str) -> dict[str, Tensor]:
        """A state dict, downloaded from the Hugging Face Hub if it is not in its cache.

        timm prefers safetensors, and of other files loads tensors only. Raises Unavailable.
        """
        name = f"{_architecture(network)}.{weights}"
        try:
            made: nn.Module = _timm().create_model(name, pretrained=True, **_options(network))
        except OSError as error:  # errors of the hub are of this kind, too
            raise Unavailable(
                f"weights {weights} of {network} could not be fetched ({type(error).__name__}); "
                "--backbone.weights also takes the path or s3:// URI of a .safetensors or .pth "
                "file, or `random` for a trial"
            ) from error
        return dict(made.state_dict())

    def load(self, network: nn.Module, state: dict[str, Tensor], name: str) -> None:
        """Load the state dict of a whole network: timm's, or the authors' if timm converts it.

        Raises UserError if names or shapes differ.
        """
        if set(state) != set(network.state_dict()):
            state = _converted(network, state)
        own = network.state_dict()
        missing, foreign = sorted(set(own) - set(state)), sorted(set(state) - set(own))
        other = [key for key in own if key in state and state[key].shape != own[key].shape]
        if missing or foreign or other:
            examples = (missing or foreign or other)[0]
            raise UserError(
                f"the weights are not those of {name}: {len(missing)} tensors are missing, "
                f"{len(foreign)} are unknown and {len(other)} have another shape, such as "
                f"{examples!r}; choose the network that the file was made of"
            )
        network.load_state_dict(state)

    def cut(self, network: nn.Module, name: str, layers: Sequence[str]) -> nn.Module:
        """The network up to the last of some layers: images -> features of each, by name.

        Raises SettingError that names the known layers.
        """
        layered = _timm().layers
        embedding = getattr(network, "patch_embed", None)
        if isinstance(embedding, layered.PatchEmbed) and hasattr(network, "blocks"):
            count = len(network.blocks)  # type: ignore[arg-type]  # a Sequential
            blocks = transformer_layers(layers, "blocks.", count, "norm")
            if blocks is None:
                known = [*(f"blocks.{block}" for block in range(count)), "norm"]
                raise SettingError(
                    f"{name} has no layers {', '.join(layers)}; known: {', '.join(known)}"
                )
            return TimmTransformer(network.eval(), name, blocks)
        known = layered.get_graph_node_names(network.eval())[1]
        check_layers(name, layers, known[1:-1])
        cut: nn.Module = layered.create_feature_extractor(network, return_nodes=list(layers))
        return cut


def _architecture(network: str) -> str:
    return network.removeprefix("timm/").partition(".")[0]


def _configurations(network: str) -> dict[str, Any]:
    """The configurations of a network in timm by tag, the default first. Raises SettingError.

    Names are looked up in timm's own list, so that none leads to another repository or folder.
    """
    models = _timm().models
    architecture = _architecture(network)
    if architecture not in models.list_models():
        near = models.list_models(f"*{architecture}*") if architecture.isidentifier() else []
        hint = f"; similar: {', '.join(near[:10])}" if near else ""
        raise SettingError(f"timm has no network {architecture!r}{hint}")
    tags = [name.partition(".")[2] for name in models.list_pretrained(f"{architecture}.*")]
    first = models.get_pretrained_cfg(architecture)
    ordered = [first.tag, *tags] if first is not None and first.tag in tags else tags
    return {tag: models.get_pretrained_cfg(f"{architecture}.{tag}") for tag in ordered}


def _options(network: str) -> dict[str, Any]:
    entry = _timm().models.model_entrypoint(_architecture(network))
    any_size = entry.__module__.rpartition(".")[2] in _ANY_SIZE
    return {"dynamic_img_size": True} if any_size else {}


def _converted(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of a network's authors as timm names it, where timm has a conversion."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted: dict[str, Tensor] = convert(dict(state), network)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return state  # of another network: the caller tells how it differs
    # A backbone needs no head, which authors' files may lack.
    heads = {k: t for k, t in network.state_dict().items() if k.startswith("head.")}
    return heads | {k: t for k, t in converted.items() if isinstance(t, torch.Tensor)}
