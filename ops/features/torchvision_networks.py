"""Networks of torchvision: classifiers cut by their graph, and vision transformers."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Sequence
from urllib.error import URLError

from torch import Tensor, nn

from ops.errors import SettingError
from ops.features.configuration import Configuration
from ops.features.vision_transformers import TorchvisionTransformer, transformer_layers
from ops.storage.storage_errors import Unavailable

# torchvision is imported in functions: it takes seconds, and most processes build no network.


class Torchvision:
    """The classification models of torchvision."""

    name = "torchvision"

    def configuration(self, network: str, weights: str) -> Configuration:  # noqa: ARG002 - all alike
        """The normalisation of all its ImageNet weights, and the usual size."""
        version = importlib.metadata.version("torchvision")
        return Configuration(self.name, version, weights=weights or "IMAGENET1K_V1")

    def new(self, network: str) -> nn.Module:
        """The whole network, with weights drawn from torch's generator."""
        from torchvision.models import get_model  # noqa: PLC0415

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision warns about how old models initialise
            model: nn.Module = get_model(network, weights=None)
        return model

    def known_weights(self, network: str) -> list[str]:
        """Names of the pretrained weights of a network."""
        from torchvision.models import get_model_weights  # noqa: PLC0415

        return [entry.name for entry in get_model_weights(network)]

    def pretrained(self, network: str, weights: str) -> dict[str, Tensor]:
        """A state dict, downloaded if it is not in the cache. Raises Unavailable."""
        from torchvision.models import get_model_weights  # noqa: PLC0415

        entry = get_model_weights(network)[weights]
        try:
            return dict(entry.get_state_dict(progress=False, check_hash=True))
        except URLError as error:
            raise Unavailable(
                f"weights {weights} of {network} could not be fetched from {entry.url}: "
                f"{error.reason}; --backbone.weights also takes the path or s3:// URI of a "
                ".safetensors or .pth file, or `random` for a trial"
            ) from None

    def load(self, network: nn.Module, state: dict[str, Tensor], name: str) -> None:  # noqa: ARG002
        """Load the state dict of a whole network. Raises RuntimeError if names or shapes differ."""
        network.load_state_dict(state)

    def cut(self, network: nn.Module, name: str, layers: Sequence[str]) -> nn.Module:
        """The network up to the last of some layers: images -> features of each, by name.

        Raises SettingError that names the known layers.
        """
        from torchvision.models import VisionTransformer, feature_extraction  # noqa: PLC0415

        if isinstance(network, VisionTransformer) and (
            blocks := transformer_layers(
                layers, "encoder.layers.encoder_layer_", len(network.encoder.layers), "encoder.ln"
            )
        ):
            return TorchvisionTransformer(network.eval(), name, blocks)
        known = feature_extraction.get_graph_node_names(network)[1]
        check_layers(name, layers, known[1:-1])
        cut: nn.Module = feature_extraction.create_feature_extractor(
            network.eval(), return_nodes=list(layers)
        )
        return cut


def check_layers(name: str, layers: Sequence[str], known: Sequence[str]) -> None:
    """Raises SettingError for a layer that is neither a node of a network nor holds one."""
    for layer in layers:
        if not any(node == layer or node.startswith(f"{layer}.") for node in known):
            raise SettingError(f"{name} has no layer {layer!r}; known: {', '.join(known)}")
