"""Loads backbone weights: by torchvision's name, from a file or `s3://`, or seeded random ones."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from urllib.error import URLError

import torch
from safetensors.torch import load

from ops.errors import UserError
from ops.storage import files
from ops.storage.storage_errors import NotFound, Unavailable


def load_weights(spec: str, name: str, seed: int) -> dict[str, torch.Tensor]:
    """The state dict of a torchvision classifier.

    `spec` is `random`, a weights name of torchvision (which downloads them and checks the hash), or
    a path or URI of a `.safetensors` or `.pth` file. Only tensors are unpickled, never code.
    Raises NotFound if `spec` is none of these, Unavailable if torchvision cannot
    download, UserError if the file holds anything but tensors.
    """
    from torchvision.models import get_model, get_model_weights  # noqa: PLC0415 - as in Backbone

    if spec == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return dict(get_model(name, weights=None).state_dict())
    known = [entry.name for entry in get_model_weights(name)]
    if spec in known:
        entry = get_model_weights(name)[spec]
        try:
            return dict(entry.get_state_dict(progress=False, check_hash=True))
        except URLError as error:
            raise Unavailable(
                f"weights {spec} of {name} could not be fetched from {entry.url}: {error.reason}; "
                "--backbone.weights also takes the path or s3:// URI of a .safetensors or .pth "
                "file, or `random` for a trial"
            ) from None
    try:
        data = files.read_bytes(spec)
    except FileNotFoundError:
        message = f"weights {spec!r}: no such file, and no weights name of torchvision's {name}"
        raise NotFound(f"{message}; known: {', '.join(known)}, random") from None
    try:
        if spec.endswith(".safetensors"):
            return load(data)
        return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except Exception as error:  # each file format raises errors of its own
        raise UserError(
            f"weights {spec!r} cannot be read as tensors ({type(error).__name__}); give a state "
            "dict as a .safetensors file, or as a .pth file that holds nothing but tensors"
        ) from None


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of the tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
