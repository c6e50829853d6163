"""Locations in settings: which are understood, and what is meant by those that are not."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from ops.errors import SettingError
from ops.storage import files, s3
from ops.storage.storage_errors import StorageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
#: Settings that name one place, apart from --archive.
_ONE_PLACE = (
    "out",
    "output",
    "inventory",
    "model",
    "model_folder",
    "grow",
    "labels",
    "decisions",
    "train_names",
    "roi",
    "ignore",
)
#: Those that may also name a model of the registry.
_REGISTERED = ("model", "grow")
_GLOB = re.compile(r"[*?\[]")
#: Host of a bucket in a web address, and host with the bucket as the first folder.
_VIRTUAL = re.compile(r"https?://([^/]+)\.s3[.-][^/]*amazonaws\.com/(.*)")
_BY_PATH = re.compile(r"https?://s3[.-][^/]*amazonaws\.com/(.+)")
_GOOGLE = re.compile(r"https?://storage\.(?:googleapis|cloud\.google)\.com/(.+)")
_GS = "with AWS_ENDPOINT_URL=https://storage.googleapis.com and an HMAC key of the bucket"


def with_checked_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, of which each that names a place is `checked`, except --archive."""
    places = {
        name: checked(name, place)
        for name in _ONE_PLACE
        if isinstance(place := values.get(name), str)
        and not (name in _REGISTERED and place.startswith("models:/"))
    }
    return {**values, **places}


def checked(setting: str, place: str) -> str:
    """A path or s3:// URI as file systems take it, without file://.

    Raises SettingError for other schemes, for a `~` that no shell replaced, and for the patterns of
    shells; the error names the form that is meant. A file whose name holds such characters is one.
    """
    path = place.removeprefix("file://") if place.startswith("file:///") else place
    scheme = _SCHEME.match(path)
    if scheme and not s3.is_s3(path) and not os.path.exists(path):
        _refuse(setting, place, _meant(scheme[1].lower(), path))
    if path.startswith("~") and not os.path.exists(path):
        _refuse(setting, place, f"write {os.path.expanduser(path)}: only a shell replaces ~")
    if (glob := _GLOB.search(path)) and not _exists(path):
        folder = path[: glob.start()].rpartition("/")[0] or "."
        several = f"name the folder, {folder}; --pattern and --suffixes choose its files"
        one = "name one place, without * ? ["
        _refuse(setting, place, several if setting == "archive" else one)
    return path


def _refuse(setting: str, place: str, remedy: str) -> None:
    name = setting.replace("_", "-")
    raise SettingError(f"--{name} {place!r} is neither a path nor an s3:// URI; {remedy}")


def _meant(scheme: str, place: str) -> str:
    """What to write instead of an address of another scheme."""
    rest = place.partition(":")[2].lstrip("/")
    by_scheme = {
        **dict.fromkeys(("s3", "s3a", "s3n"), f"write s3://{rest}"),
        **dict.fromkeys(("gs", "gcs"), f"write s3://{rest} {_GS}"),
        "file": f"write /{rest}",
        **dict.fromkeys(("http", "https"), "download it, or name the bucket: s3://BUCKET/PREFIX"),
    }
    if match := _VIRTUAL.match(place) or _BY_PATH.match(place):
        return f"write s3://{'/'.join(match.groups())}"
    if match := _GOOGLE.match(place):
        return f"write s3://{match[1]} {_GS}"
    return by_scheme.get(scheme, "copy it to a folder or to S3, or mount it as a folder")


def _exists(path: str) -> bool:
    if not s3.is_s3(path):
        return os.path.exists(path)
    try:
        return files.exists(path) or files.is_folder(path)
    except StorageError:  # the job reports it when it opens the place
        return True
