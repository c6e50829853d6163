"""The files of inspection masks in a folder, each of which must have the hash on record."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ops.errors import UserError
from ops.images.inspection import InspectionMask
from ops.storage import files, paths
from ops.storage.storage_errors import NotFound, TooLarge

#: Bytes of a file: a bit for each pixel, and what surrounds them.
_MOST_BYTES = 2**23


def hashes(masks: Mapping[str, InspectionMask]) -> dict[str, str]:
    """The hash of each mask by the name of its detector."""
    return {name: mask.sha256 for name, mask in sorted(masks.items())}


def write_masks(folder: str, masks: Mapping[str, InspectionMask]) -> None:
    """Write masks by the names of their detectors."""
    for name, mask in masks.items():
        files.write_bytes(files.join(folder, paths.mask_file(name)), mask.png)


def read_masks(
    folder: str, known: Mapping[str, str], names: Collection[str] | None = None
) -> dict[str, InspectionMask]:
    """The masks with these hashes by detector; of some detectors alone, if `names` are given.

    Raises UserError if a file is missing, cannot be read, or has another hash.
    """
    chosen = [name for name in known if names is None or name in names]
    return {name: _read(files.join(folder, paths.mask_file(name)), known[name]) for name in chosen}


def _read(location: str, sha256: str) -> InspectionMask:
    remedy = "restore it from another copy of the model, or fit the model again"
    try:
        mask = InspectionMask(files.read_bytes(location, limit=_MOST_BYTES))
    except NotFound:
        raise NotFound(f"{location} is missing, which holds an inspection mask; {remedy}") from None
    except TooLarge:
        raise UserError(f"{location} is too large for an inspection mask; {remedy}") from None
    try:
        found = mask.sha256
    except UserError as error:
        raise UserError(f"{location} is no inspection mask: {error}; {remedy}") from None
    if found != sha256:
        raise UserError(
            f"{location} is not the inspection mask that the model was fitted with; {remedy}"
        )
    return mask
