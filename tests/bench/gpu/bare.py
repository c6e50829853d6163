"""Imports on a bare machine: FrEIA out of the bundle, stand-ins for decoders that are absent."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import ClassVar

#: Libraries that modules of ops import for kinds of images that the check does not read.
DECODERS = ("imagecodecs", "tifffile", "pi_heif")


class Absent(types.ModuleType):
    """Stands in for a library that is not installed: it can be imported, but not called."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")

    def __call__(self, *_: object, **__: object) -> None:
        raise ImportError(f"{self.__name__} is not installed on this machine")


def make_importable(bundle: Path) -> list[str]:
    """Let everything that the parts need be imported; the names of what had to be replaced."""
    replaced = []
    if importlib.util.find_spec("FrEIA") is None:
        sys.path.append(str(bundle / "site"))
        replaced.append("FrEIA")
    for name in DECODERS:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = Absent(name)
            replaced.append(name)
    return replaced
