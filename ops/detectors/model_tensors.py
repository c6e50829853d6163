"""The tensors in a model folder, which are checked against the hashes in its card."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ops.archives.views import product_of
from ops.detectors.model_card import ModelCard
from ops.errors import UserError
from ops.features.weights import fingerprint
from ops.storage import files, paths


def read_backbone(location: str, card: ModelCard) -> dict[str, Tensor]:
    """The tensors of a model's backbone. Raises UserError if they differ from their hash."""
    backbone = _read_tensors(location, paths.BACKBONE)
    _check(location, paths.BACKBONE, fingerprint(backbone), card.backbone_sha256)
    return backbone


def read_detectors(
    location: str, card: ModelCard, products: Collection[str] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """File and tensors of the detectors of some products (None = all), one after the other.

    Raises UserError if tensors differ from their hash in the card.
    """
    chosen = [
        name
        for name in card.products
        if products is None or product_of(name, card.views) in products
    ]
    by_file: dict[str, list[str]] = {}
    for name in chosen:
        by_file.setdefault(card.products[name].file, []).append(name)
    for file, names in by_file.items():
        tensors = _read_tensors(location, file)
        sha256 = fingerprint(tensors)
        for name in names:
            _check(location, file, sha256, card.products[name].sha256)
        yield file, tensors


def read_detector(location: str, card: ModelCard, name: str) -> dict[str, Tensor]:
    """The tensors of one detector. Raises UserError if they differ from their hash in the card."""
    product = card.products[name]
    tensors = _read_tensors(location, product.file)
    _check(location, product.file, fingerprint(tensors), product.sha256)
    return tensors


def _read_tensors(location: str, file: str) -> dict[str, Tensor]:
    try:
        return load(files.read_bytes(files.join(location, file)))
    except SafetensorError as error:
        raise UserError(
            f"{location}/{file} is damaged: it is not a safetensors file ({error}); restore it "
            "from a backup, or fit the model again"
        ) from error


def _check(location: str, file: str, sha256: str, expected: str) -> None:
    if sha256 != expected:
        raise UserError(f"{location}/{file} does not hold the tensors that model.json names")
