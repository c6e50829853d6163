"""The network in a model's card, and the licence of its weights, which the model folder carries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ops.errors import UserError
from ops.features.configuration import Configuration
from ops.storage import files, paths

_HASH = "licence_sha256"


def network_card(configuration: Configuration, licence: bytes) -> dict[str, Any]:
    """What a card says of its network, as JSON values."""
    card = asdict(configuration)
    return card | ({_HASH: hashlib.sha256(licence).hexdigest()} if licence else {})


def given_licence(location: str) -> bytes:
    """The licence that a fit names, empty if it names none. Raises NotFound; UserError if empty."""
    if location and not (text := files.read_bytes(location)):
        raise UserError(f"{location} is empty; --backbone.licence takes the text of a licence")
    return text if location else b""


def write_licence(folder: str, licence: bytes) -> None:
    """Write a licence, if there is one, into a model folder."""
    if licence:
        files.write_bytes(files.join(folder, paths.LICENCE), licence)


def read_licence(folder: str, network: Mapping[str, Any]) -> bytes:
    """The licence in a model folder, empty if the card's `network` names none.

    Raises UserError if it is not the one that the card names.
    """
    if not (expected := network.get(_HASH)):
        return b""
    text = files.read_bytes(files.join(folder, paths.LICENCE))
    if hashlib.sha256(text).hexdigest() != expected:
        raise UserError(
            f"{folder}/{paths.LICENCE} is not the licence that model.json names; restore it from a "
            "backup, or fit the model again"
        )
    return text
