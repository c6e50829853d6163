"""The detectors by name."""

from __future__ import annotations

from ops.cflow import CFlow
from ops.csflow import CsFlow
from ops.differnet import DifferNet
from ops.fastflow import FastFlow
from ops.glance import Glance
from ops.method import Method
from ops.padim import PaDiM
from ops.patchcore import PatchCore
from ops.spade import Spade
from ops.ssnf import Ssnf

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (PatchCore, Spade, PaDiM, DifferNet, FastFlow, CFlow, CsFlow, Ssnf, Glance)
}


def method_named(name: str) -> type[Method]:
    """A detector's class. Raises ValueError that lists the known names."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]
