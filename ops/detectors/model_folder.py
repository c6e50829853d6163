"""The model folder: safetensors files and `model.json`, which is written last. No pickles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from safetensors.torch import save
from torch import Tensor

from ops.detectors.model_card import ModelCard, identity
from ops.detectors.model_tensors import read_backbone, read_detectors
from ops.detectors.network_licence import read_licence, write_licence
from ops.errors import UserError
from ops.images.inspection import InspectionMask
from ops.images.inspection_files import read_masks, write_masks
from ops.storage import files, paths
from ops.storage.storage_errors import AlreadyExists, NotFound


@dataclass(frozen=True)
class Model:
    """A model with the tensors of its backbone and of each product's detector.

    Pictures of the fit, PNG by file name, are written with it and never read. The licence of the
    backbone's weights goes with every copy. `masks` are the inspection masks by detector.
    """

    card: ModelCard
    backbone: dict[str, Tensor]
    products: dict[str, dict[str, Tensor]]
    pictures: dict[str, bytes] = field(default_factory=dict)
    licence: bytes = b""
    held_out: bytes = b""
    """A Parquet file of the images that calibrated the model; empty if there are none."""
    origins: bytes = b""
    """A Parquet file of `bank_origins.SCHEMA`; empty for detectors without a bank."""
    masks: dict[str, InspectionMask] = field(default_factory=dict)
    members: tuple[Model, ...] = ()
    """Of an ensemble, which has no tensors of its own."""

    @property
    def detectors(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of the detectors by file; products of a joint model share a file."""
        return {self.card.products[name].file: tensors for name, tensors in self.products.items()}


def write_model(location: str, model: Model) -> None:
    """Write a model folder. model.json comes last, so a folder that has it is complete.

    Raises AlreadyExists if the folder holds another model: models are never overwritten.
    """
    card_file = files.join(location, paths.MODEL_CARD)
    if files.exists(card_file):
        if files.read_json(card_file)["model_id"] == model.card.model_id:
            return
        raise AlreadyExists(f"another model lies at {location}; choose a new folder")
    for number, member in enumerate(model.members):
        write_model(files.join(location, paths.member(number)), member)
    if not model.members:
        files.write_bytes(files.join(location, paths.BACKBONE), save(model.backbone))
    for file, tensors in model.detectors.items():
        data = save({k: v.contiguous() for k, v in tensors.items()})
        files.write_bytes(files.join(location, file), data)
    for file, picture in model.pictures.items():
        files.write_bytes(files.join(location, file), picture)
    for file, table in ((paths.CALIBRATED_BY, model.held_out), (paths.ORIGINS, model.origins)):
        if table:
            files.write_bytes(files.join(location, file), table)
    write_licence(location, model.licence)
    write_masks(location, model.masks)
    content = {"model_id": model.card.model_id, **model.card.to_json()}
    files.write_json(card_file, content)


def read_card(location: str) -> ModelCard:
    """The card of a model. Raises NotFound if the folder holds no complete model."""
    try:
        content = files.read_json(files.join(location, paths.MODEL_CARD))
    except FileNotFoundError:
        message = f"no complete model at {location}: there is no {paths.MODEL_CARD}"
        raise NotFound(f"{message}; make one with python -m jobs.fit") from None
    with _malformed(location):
        named = content.get("members", [])
        folders = [files.join(location, paths.member(number)) for number in range(len(named))]
        members = tuple(map(read_card, folders))
        if [member.model_id for member in members] != named:
            raise UserError(f"{location}: its members are not those that model.json names")
        card = ModelCard.from_json(content, members)
        if content.get("model_id") != identity(content):
            raise UserError(f"{location}: model.json was changed after it was written (id differs)")
        return replace(card, written_id=content["model_id"])


@contextlib.contextmanager
def _malformed(location: str) -> Iterator[None]:
    """Errors of a card whose values are not of the form that jobs.fit writes."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{location}: model.json is not as jobs.fit writes it ({type(error).__name__}: "
            f"{error}); restore it from a backup, or fit the model again"
        ) from error


def read_model(location: str) -> Model:
    """A model with its tensors. Raises UserError if tensors differ from their hash in the card."""
    card = read_card(location)
    if card.members:
        folders = [files.join(location, paths.member(n)) for n in range(len(card.members))]
        masks = read_masks(location, card.masks)
        return Model(card, {}, {}, masks=masks, members=tuple(map(read_model, folders)))
    detectors = dict(read_detectors(location, card))
    products = {name: detectors[product.file] for name, product in card.products.items()}
    return Model(
        card,
        read_backbone(location, card),
        products,
        held_out=_bytes_of(location, paths.CALIBRATED_BY),
        origins=_bytes_of(location, paths.ORIGINS),
        licence=read_licence(location, card.network),
        masks=read_masks(location, card.masks),
    )


def _bytes_of(location: str, file: str) -> bytes:
    """The bytes of a file of a model folder; none if the model has no such file."""
    place = files.join(location, file)
    return files.read_bytes(place) if files.exists(place) else b""
