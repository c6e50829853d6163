"""Loads backbone weights: by their library's name, from a file or `s3://`, or random ones."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

import torch
from safetensors.torch import load

from ops.errors import UserError
from ops.features.libraries import library_of
from ops.storage import files
from ops.storage.storage_errors import NotFound


def load_weights(spec: str, name: str, seed: int) -> dict[str, torch.Tensor]:
    """The state dict of a whole network.

    `spec` is `random`, a name of pretrained weights of the network's library (which downloads
    them), or a path or URI of a `.safetensors` or `.pth` file. Only tensors are unpickled, never
    code.
    Raises NotFound if `spec` is none of these, Unavailable if the library cannot
    download, UserError if the file holds anything but tensors.
    """
    library = library_of(name)
    if spec == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return dict(library.new(name).state_dict())
    known = library.known_weights(name)
    if spec in known:
        return library.pretrained(name, spec)
    try:
        data = files.read_bytes(spec)
    except FileNotFoundError:
        message = f"weights {spec!r}: no such file, and no weights name of {library.name}'s {name}"
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
