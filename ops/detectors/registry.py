"""The detectors by name."""

from __future__ import annotations

from ops.detectors.cflow import CFlow
from ops.detectors.csflow import CsFlow
from ops.detectors.detector import Method
from ops.detectors.differnet import DifferNet
from ops.detectors.fastflow import FastFlow
from ops.detectors.glance.detector import Glance
from ops.detectors.padim import PaDiM
from ops.detectors.patchcore import PatchCore
from ops.detectors.spade import Spade
from ops.detectors.ssnf import Ssnf

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (PatchCore, Spade, PaDiM, DifferNet, FastFlow, CFlow, CsFlow, Ssnf, Glance)
}


def method_named(name: str) -> type[Method]:
    """A detector's class. Raises ValueError that lists the known names."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]
